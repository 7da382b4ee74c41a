-- Argo CD: the health of a lamplighter.dev Repository. See README.md beside it.
local hs = { status = "Progressing", message = "waits for the controller" }
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return hs
end
local seen = {}
for _, condition in ipairs(status.conditions) do
  seen[condition.type] = condition
end
local function is_true(name)
  return seen[name] ~= nil and seen[name].status == "True"
end
if is_true("Stalled") then
  return { status = "Degraded", message = seen.Stalled.message }
end
if is_true("Reconciling") then
  return { status = "Progressing", message = seen.Reconciling.message }
end
if is_true("Degraded") then
  return { status = "Degraded", message = seen.Degraded.message }
end
if is_true("Ready") then
  return { status = "Healthy", message = seen.Ready.message }
end
return hs
