// The connection to /events: kept open, watched, and made again by itself.
//
// fetch() and not EventSource, since only fetch can send the token as a header; a token never stands in an address.
// Promises: `onState` tells every change (connecting, live, lost, signIn); whatever stops coming for SILENCE_S is lost.

const SILENCE_S = 5;
const PAUSE_S_MIN = 0.5;
const PAUSE_S_MAX = 10;

export class Live {
  #token = () => null;
  #abort = null;
  #timer = null;
  #pauseS = PAUSE_S_MIN;

  constructor({ token, onEvent, onState }) {
    this.#token = token;
    this.onEvent = onEvent;
    this.onState = onState;
    window.addEventListener("online", () => this.#timer && this.connect());
    document.addEventListener("visibilitychange", () => !document.hidden && this.#timer && this.connect());
  }

  /** Connect now, whatever was going on. */
  async connect() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#abort?.abort();
    const abort = new AbortController();
    this.#abort = abort;
    this.onState("connecting");
    let why = "";
    try {
      why = await this.#follow(abort);
    } catch {
      why = "no answer";
    }
    if (this.#abort !== abort) return; // Somebody connected anew meanwhile.
    if (why === null) return;
    this.onState("lost", { why, againS: this.#pauseS });
    this.#timer = setTimeout(() => this.connect(), this.#pauseS * 1000);
    this.#pauseS = Math.min(2 * this.#pauseS, PAUSE_S_MAX);
  }

  /** Read until it ends. Returns why it ended, or null when there is no use in trying again. */
  async #follow(abort) {
    let watch = setTimeout(() => abort.abort(), SILENCE_S * 1000);
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => abort.abort(), SILENCE_S * 1000);
    };
    try {
      const token = this.#token();
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      const response = await fetch("/events", { headers, signal: abort.signal, cache: "no-store", credentials: "omit" });
      if (response.status === 401 || response.status === 403) {
        this.onState("signIn", { status: response.status, hadToken: Boolean(token) });
        return null;
      }
      if (!response.ok) return (await response.json()).message;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return "the daemon ended it";
        alive();
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) this.#tell(part);
      }
    } finally {
      clearTimeout(watch);
    }
  }

  #tell(part) {
    const fields = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s, 2)));
    if (fields.data === undefined) return;
    this.#pauseS = PAUSE_S_MIN;
    this.onState("live");
    this.onEvent(fields.event, JSON.parse(fields.data));
  }
}
