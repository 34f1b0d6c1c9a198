// Shows the turns of a conversation: question, image, answer and its timings. Text is only set as text.

const template = document.getElementById("turn-template");
const place = document.getElementById("turns");
const shown = new Map(); // from the id of a turn to its element, for the conversation that is on the screen
let addresses = []; // object URLs of the images on the screen

function seconds(ms) {
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

function count(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

/** Return the parts of an answer's time, as {kind, ms, text}. Those that would be shown as 0.0 ms are left out. */
function stages({ timings, usage }) {
  const { image_ms = 0, prompt_n = 0, prompt_ms = 0, predicted_n = 0, predicted_ms = 0 } = timings;
  const kept = usage?.prompt_tokens_details?.cached_tokens ?? 0;
  const prompt = `prompt ${seconds(prompt_ms)}, ${count(prompt_n, "token")}${kept ? `, ${kept} kept` : ""}`;
  const speed = predicted_ms > 0 ? `, ${((predicted_n * 1000) / predicted_ms).toFixed(1)} tokens/s` : "";
  return [
    { kind: "image", ms: image_ms, text: `image ${seconds(image_ms)}` },
    { kind: "prompt", ms: prompt_ms, text: prompt },
    { kind: "answer", ms: predicted_ms, text: `answer ${seconds(predicted_ms)}${speed}` },
  ].filter((stage) => stage.ms >= 0.05);
}

function showTimings(element, answer) {
  const parts = answer.timings ? stages(answer) : [];
  element.hidden = parts.length === 0;
  const bars = parts.map(({ kind, ms }) => {
    const bar = document.createElement("span");
    bar.className = kind;
    bar.style.flexGrow = ms;
    return bar;
  });
  const lines = parts.map(({ kind, text }) => {
    const line = document.createElement("li");
    line.className = kind;
    line.textContent = text;
    return line;
  });
  element.querySelector(".bar").replaceChildren(...bars);
  element.querySelector("ul").replaceChildren(...lines);
}

function note({ state, problem, finish, temperature }) {
  if (state === "stopped") return "Stopped.";
  if (state === "failed") return problem;
  if (finish === "length") return "The answer is cut off here: the context or the limit of tokens is full.";
  return temperature > 0 ? "Another answer, drawn at random from the likely ones." : "";
}

/** Set a text; where it only grew, add to it, so that a reader's selection stays. */
function setText(element, text) {
  const node = element.firstChild;
  if (node && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else element.textContent = text;
}

/** Show what has changed in the answer of a turn, if the turn is on the screen. */
export function showAnswer(turn) {
  const element = shown.get(turn.id)?.querySelector(".answer");
  if (!element) return;
  const { answer } = turn;
  const isRunning = answer.state === "running";
  setText(element.querySelector(".answer > .text"), answer.text);
  element.setAttribute("aria-busy", String(isRunning));
  element.classList.toggle("failed", answer.state === "failed");
  const waiting = element.querySelector(".waiting");
  waiting.hidden = !isRunning || (answer.text !== "" && !answer.wait);
  waiting.querySelector(".what").textContent = answer.wait || `Reading the ${turn.question.image ? "image and the " : ""}question`;
  const said = element.querySelector(".note");
  said.textContent = isRunning ? "" : note(answer);
  said.hidden = said.textContent === "";
  element.querySelector(".foot").hidden = isRunning;
  element.querySelector(".copy").hidden = answer.text === "";
  showTimings(element.querySelector(".timings"), answer);
}

async function showImage(element, image, imageOf) {
  const blob = await imageOf(image.id);
  element.alt = blob ? `Image ${image.name}` : `Image ${image.name}, which is no longer in this browser`;
  if (blob) {
    addresses.push(URL.createObjectURL(blob));
    element.src = addresses.at(-1);
  }
  element.hidden = false;
  await element.decode().catch(() => {}); // one that is damaged shows its text
}

/** Add a turn at the end. `actions` are {imageOf, copy, retry}; return when its image is shown. */
export async function addTurn(turn, actions) {
  const element = template.content.firstElementChild.cloneNode(true);
  const question = element.querySelector(".question");
  question.querySelector(".text").textContent = turn.question.text;
  element.querySelector(".copy").addEventListener("click", (event) => actions.copy(turn, event.currentTarget));
  element.querySelector(".retry").addEventListener("click", () => actions.retry(turn));
  place.append(element);
  shown.set(turn.id, element);
  showAnswer(turn);
  if (turn.question.image) await showImage(question.querySelector("img"), turn.question.image, actions.imageOf);
}

/** Show the turns of a conversation in place of those before. */
export async function showTurns(turns, actions) {
  addresses.forEach((address) => URL.revokeObjectURL(address));
  addresses = [];
  shown.clear();
  place.replaceChildren();
  await Promise.all(turns.map((turn) => addTurn(turn, actions)));
}
