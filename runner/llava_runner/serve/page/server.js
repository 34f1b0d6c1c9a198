// Talks to the server: asks, reads the answer as it comes, and keeps the API key until the tab is closed.

const KEY = "llava-api-key";
const MOST_WAITS = 5; // how often a busy server is asked again

let key = null;
try {
  key = sessionStorage.getItem(KEY);
} catch {
  // Without storage the key is asked for again after a reload.
}

/** Use an API key from now on. */
export function useKey(text) {
  key = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // See above.
  }
}

/** Return whether there is an API key, right or wrong. */
export function hasKey() {
  return key !== null;
}

/** What the server refused, or that it is gone. The message is for the user; `status` is 0 if there was no response. */
export class ServerError extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

const GONE = "The server does not answer. Is “llava serve” still running?";
const CUT = "The connection ended before the answer did.";
const REASONS = {
  401: "The server wants an API key.",
  413: "The server does not take so much at once. Begin a new conversation, or use a smaller image.",
  429: "The server is busy with other questions. Try again in a moment.",
  503: "The server is stopping, or not ready yet. Try again in a moment.",
};

async function refusal(response) {
  let said = "";
  try {
    said = String((await response.json()).error.message);
  } catch {
    // Not this server's way to refuse: the status has to do.
  }
  const { status } = response;
  const message = REASONS[status] ?? (said || `The server refused with status ${status}.`);
  return new ServerError(message, { status, retryAfter: Number(response.headers.get("Retry-After")) || 1 });
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key === null ? {} : { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(GONE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Yield the data of each server-sent event. Events of this API have one line each. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerError(CUT);
    }
    if (part.done) return;
    const lines = (rest + part.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function accepted(body, { signal, onBusy }) {
  for (let waits = 0; ; waits++) {
    try {
      return await post("v1/chat/completions", body, signal);
    } catch (error) {
      if (error.status !== 429 || waits === MOST_WAITS) throw error;
      onBusy(error.retryAfter);
      await pause(error.retryAfter, signal);
    }
  }
}

/**
 * Ask, and yield the chunks of OpenAI's chat completions as they come.
 *
 * A busy server is asked again when it says so; `onBusy` then gets the seconds. Throw ServerError, or AbortError when
 * `signal` says to stop.
 */
export async function* ask(body, { signal, onBusy }) {
  const stream = { stream: true, stream_options: { include_usage: true } };
  const response = await accepted({ ...body, ...stream }, { signal, onBusy });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, { status: response.status });
    yield chunk;
  }
  throw new ServerError(CUT);
}

/** Return what the server says about its package. Throw ServerError. */
export async function packageFacts() {
  return await (await request("package")).json();
}

/** Return what `llava verify` finds on the server: `verdict`, and `text`, its output. Throw ServerError. */
export async function verifyPackage() {
  return await (await post("package/verification", {})).json();
}
