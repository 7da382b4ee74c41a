// Signs in by a link at once, unless somebody is signed in already; and refuses to send a token over a network in clear.
if (!window.isSecureContext) {
  document.getElementById("plain").hidden = false;
  for (const button of document.querySelectorAll(".entrance button")) button.disabled = true;
} else {
  document.getElementById("link")?.requestSubmit();
}
