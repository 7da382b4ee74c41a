// Keeps a page as new as what it shows: listens which kinds have changed, gets the page again, puts its <main> in place.
// Also shows times in the reader's zone.

const LEAST_MS = 1000; // between two loads
const MOST_MS = 30000; // so that "3 min ago" stays true
const EVERY_MS = 2000; // while the page has an element with data-every: what it shows is no event
const BUSY = "input:not([type=hidden]), select, textarea, dialog[open] *";

const zone = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const text = zone.format(new Date(time.dateTime));
    if (time.title) time.title = text;
    else time.textContent = text;
  }
}

// What must not change under the reader's hands: a form being filled in, and marked text.
function isBusy(main) {
  return (document.activeElement !== main && main.contains(document.activeElement) && document.activeElement.matches(BUSY))
    || !(getSelection()?.isCollapsed ?? true);
}

// A way to find the same element in the new page.
function trace(element, root) {
  if (element.id) return () => document.getElementById(element.id);
  const same = `${element.tagName}${element.getAttribute("href") ? `[href="${CSS.escape(element.getAttribute("href"))}"]` : ""}`;
  const index = [...root.querySelectorAll(same)].indexOf(element);
  return (main) => main.querySelectorAll(same)[index];
}

function swap(main, fresh) {
  const focused = main.contains(document.activeElement) && document.activeElement !== main
    ? trace(document.activeElement, main) : null;
  const open = new Set([...main.querySelectorAll("details[id]")].filter((it) => it.open).map((it) => it.id));
  const closed = new Set([...main.querySelectorAll("details[id]")].filter((it) => !it.open).map((it) => it.id));
  const scrolled = [...main.querySelectorAll("[data-scroll]")].map((it) => [it.id, it.scrollTop, it.scrollLeft]);
  const followed = [...main.querySelectorAll("[data-follow]")]
    .filter((it) => it.scrollTop + it.clientHeight >= it.scrollHeight - 8).map((it) => it.id);
  const said = spoken(main);
  localTimes(fresh);
  main.replaceChildren(...fresh.childNodes);
  for (const it of main.querySelectorAll("details[id]")) {
    if (open.has(it.id)) it.open = true;
    if (closed.has(it.id)) it.open = false;
  }
  for (const [id, top, left] of scrolled) document.getElementById(id)?.scrollTo(left, top);
  for (const id of followed) document.getElementById(id)?.scrollTo(0, Number.MAX_SAFE_INTEGER);
  focused?.(main)?.focus({ preventScroll: true });
  if (spoken(main) !== said) document.getElementById("told").textContent = spoken(main);
}

// What a screen reader says when it has changed: the page's sentence, without its sign.
function spoken(main) {
  return [...main.querySelector("[data-say]")?.childNodes ?? []]
    .filter((it) => !it.ariaHidden).map((it) => it.textContent).join("");
}

class Live {
  constructor(main) {
    this.main = main;
    this.kinds = new Set(main.dataset.live.split(" "));
    this.waits = 0;
    this.loading = false;
    this.next = LEAST_MS;
    document.addEventListener("visibilitychange", () => this.visible());
    this.visible();
    setInterval(() => this.load(), MOST_MS);
    setInterval(() => { if (main.querySelector("[data-every]")) this.soon(); }, EVERY_MS);
  }

  // A browser has few connections to a server: pages that nobody sees give theirs back.
  visible() {
    this.source?.close();
    this.source = undefined;
    if (document.hidden) return;
    const source = new EventSource("/live");
    let first = true;
    source.onmessage = (event) => {
      this.say("live");
      const { changed } = JSON.parse(event.data);
      if (!first && changed.some((kind) => this.kinds.has(kind))) this.soon();
      if (first && this.left) this.soon();
      first = false;
      this.left = true;
    };
    source.onerror = () => this.say("not live: the server does not answer");
    this.source = source;
  }

  say(text) {
    const place = document.getElementById("liveness");
    if (place.textContent !== `· ${text}`) place.textContent = `· ${text}`;
  }

  soon() {
    if (this.waits) return;
    this.waits = setTimeout(() => { this.waits = 0; this.load(); }, this.next);
  }

  async load() {
    if (document.hidden || this.loading) return;
    if (isBusy(this.main)) return this.soon();
    this.loading = true;
    const began = performance.now();
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected || answer.status === 401) return location.reload();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!isBusy(this.main)) swap(this.main, page.getElementById("main"));
    } catch {
      this.say("not live: the server does not answer");
    } finally {
      this.loading = false;
      this.next = Math.max(LEAST_MS, 5 * (performance.now() - began)); // a slow server is asked less often
    }
  }
}

localTimes(document);
const main = document.querySelector("main[data-live]");
if (main) new Live(main);
