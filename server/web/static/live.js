// Keeps a page as new as what it shows: listens which kinds have changed, gets the page again, puts its <main> in place.
// Also shows times in the reader's zone.

const LEAST_MS = 1000; // between two loads
const MOST_MS = 30000; // so that "3 min ago" stays true
const EVERY_MS = 2000; // while the page has an element with data-every: what it shows is no event
const AGAIN_MS = 5000; // after an answer that is no stream, as of a proxy whose server restarts
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

// What tells an element from the others: a button that runs one thing must never become that of another.
function identity(element) {
  const sent = element.form ? [element.form.action, ...[...element.form.elements]
    .filter((it) => it.type === "hidden" && it.name !== "form_token").map((it) => `${it.name}=${it.value}`)] : [];
  return [element.tagName, element.getAttribute("href"), element.name, element.textContent, ...sent].join("\n");
}

// A way to find the same element in the new page; none where it is gone.
function trace(element, root) {
  if (element.id) return () => document.getElementById(element.id);
  const own = identity(element);
  const same = (place) => [...place.querySelectorAll(element.tagName)].filter((it) => identity(it) === own);
  const index = same(root).indexOf(element);
  return (main) => same(main)[index];
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
  if (focused) (focused(main) ?? main).focus({ preventScroll: true });
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
    clearTimeout(this.again);
    if (document.hidden) return;
    const { namespace } = this.main.dataset;
    const source = new EventSource(namespace ? `/live?namespace=${encodeURIComponent(namespace)}` : "/live");
    let first = true;
    source.onmessage = (event) => {
      this.say("live");
      this.pause = undefined;
      const { changed } = JSON.parse(event.data);
      if (!first && changed.some((kind) => this.kinds.has(kind))) this.soon();
      if (first && this.left) this.soon();
      first = false;
      this.left = true;
    };
    source.onerror = () => {
      this.say(`not live: loaded again every ${MOST_MS / 1000} s`);
      // The browser itself connects again after a stream that broke, and not after an answer that is none.
      if (source.readyState === EventSource.CLOSED) this.again = setTimeout(() => this.visible(), this.later());
    };
    this.source = source;
  }

  // Longer and longer, up to where the page is loaded again anyway.
  later() {
    this.pause = Math.min(MOST_MS, 2 * (this.pause ?? AGAIN_MS / 2));
    return this.pause;
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
