{{/* What several templates share. */}}

{{/* The prefix of all names: the release's name, with "lamplighter" in it. */}}
{{- define "lamplighter.name" -}}
{{- if contains "lamplighter" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-lamplighter" .Release.Name }}{{ end }}
{{- end }}

{{/* Labels that select a component's pods. Call with (list . "server"). */}}
{{- define "lamplighter.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: lamplighter
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of every object. Call with (list . "server"). */}}
{{- define "lamplighter.labels" -}}
{{- $root := index . 0 -}}
{{ include "lamplighter.selector" . }}
app.kubernetes.io/part-of: lamplighter
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
{{- end }}

{{/* The metadata of an object in the release's namespace. Call with (list . "component" "name"). */}}
{{- define "lamplighter.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "lamplighter.labels" . | nindent 2 }}
{{- end }}

{{/* A component's image. Call with (list . "server" .Values.server.image); the controller runs the server's. */}}
{{- define "lamplighter.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- $name := printf "lamplighter-%s:%s" (index . 1) (default $root.Chart.AppVersion $image.tag) -}}
{{- default (empty $image.registry | ternary $name (printf "%s/%s" $image.registry $name)) (index . 2) -}}
{{- end }}

{{/* The server's URL, as agents and the controller use it. */}}
{{- define "lamplighter.url" -}}
{{- default (printf "https://%s.%s.svc:8700" (include "lamplighter.name" .) .Release.Namespace) .Values.server.url -}}
{{- end }}

{{/* Every name by which the server is reached, as a JSON list. */}}
{{- define "lamplighter.tlsNames" -}}
{{- $service := include "lamplighter.name" . -}}
{{- $namespace := .Release.Namespace -}}
{{- $own := list (printf "%s.%s.svc" $service $namespace) (printf "%s.%s.svc.cluster.local" $service $namespace) "localhost" -}}
{{- concat $own .Values.tls.names | uniq | toJson -}}
{{- end }}

{{/* The Secret with the server's certificate, where it does not make its own. */}}
{{- define "lamplighter.tlsSecret" -}}
{{- if eq .Values.tls.mode "secret" }}{{ .Values.tls.existingSecret }}{{ else }}{{ include "lamplighter.name" . }}-tls{{ end }}
{{- end }}

{{/* Whether the server's first start makes something: "true" or nothing. */}}
{{- define "lamplighter.makesKeys" -}}
{{- if or (eq .Values.tls.mode "generated") (not .Values.vault.existingSecret) }}true{{ end }}
{{- end }}

{{/* The volume with the CA that agents and the controller trust. Its pods wait until the CA is there. */}}
{{- define "lamplighter.caVolume" -}}
- name: ca
  {{- if eq .Values.tls.mode "generated" }}
  configMap:
    name: {{ include "lamplighter.name" . }}-ca
    items: [{key: ca.crt, path: ca.crt}]
  {{- else }}
  secret:
    secretName: {{ include "lamplighter.tlsSecret" . }}
    items: [{key: ca.crt, path: ca.crt}]
  {{- end }}
{{- end }}

{{/* The volume with a token that says to the server, and to no other, who the pod is; the kubelet replaces it in time. */}}
{{- define "lamplighter.tokenVolume" -}}
- name: token
  projected:
    sources:
      - serviceAccountToken: {path: token, audience: lamplighter, expirationSeconds: 3600}
{{- end }}

{{/* Pod Security "restricted", for a pod. */}}
{{- define "lamplighter.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Pod Security "restricted", for a container. */}}
{{- define "lamplighter.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The metadata of a component's pods. Call with (list . "server" .Values.server). */}}
{{- define "lamplighter.podMetadata" -}}
labels:
  {{- include "lamplighter.selector" . | nindent 2 }}
{{- with (index . 2).podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a component's pods run, and as what. Call with (list . .Values.server). */}}
{{- define "lamplighter.placement" -}}
{{- $root := index . 0 -}}
{{- $of := index . 1 -}}
enableServiceLinks: false # variables of a Service named lamplighter would be read as options
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The link from an alert to its page. Call with (list . "LamplighterOverdue"). Releases of the chart have a home. */}}
{{- define "lamplighter.runbook" -}}
{{- $root := index . 0 -}}
{{- $home := empty $root.Chart.Home | ternary "docs/runbooks" (printf "%s/blob/v%s/docs/runbooks" $root.Chart.Home $root.Chart.Version) -}}
runbook_url: {{ printf "%s/%s.md" (default $home $root.Values.metrics.prometheusRule.runbookUrl | trimSuffix "/") (index . 1) | quote }}
{{- end }}

{{/* The controller's rights in the whole cluster, and why. The server asks RBAC too before it lets it change anything. */}}
{{- define "lamplighter.clusterRules" -}}
# It creates a Host with the labels of each node.
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
- apiGroups: [lamplighter.dev]
  resources: [hosts]
  verbs: [create, update, patch, delete]
- apiGroups: [lamplighter.dev]
  resources: [hosts/status]
  verbs: [patch]
# It reads what is declared, here and at the server, to compare both.
- apiGroups: [lamplighter.dev]
  resources: [schedules, repositories, alerts, hosts, runs, restores]
  verbs: [get, list, watch]
{{- end }}

{{/* The controller's rights where it follows what people declare. */}}
{{- define "lamplighter.namespaceRules" -}}
# At the server it creates and deletes what is declared. In the cluster it writes status, and deletes Runs and Restores
# that have ended where their specs say so.
- apiGroups: [lamplighter.dev]
  resources: [schedules, repositories, alerts, runs, restores]
  verbs: [create, update, delete]
- apiGroups: [lamplighter.dev]
  resources: [schedules/status, repositories/status, alerts/status, runs/status, restores/status]
  verbs: [patch]
# It reads the Secrets that Repositories and Alerts name.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- with .Values.rbac.watchSecrets }}
# It watches these, so that it notices a change at once.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: {{ toJson . }}
  verbs: [watch]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, get, patch]
{{- end }}

{{/* The controller's rights in the release's namespace. */}}
{{- define "lamplighter.homeRules" -}}
# One replica works at a time.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
# It writes Events about Hosts.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, get, patch]
{{- end }}
