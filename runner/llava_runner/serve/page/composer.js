// Where a question is written: text, image, suggestions, and the button that asks or stops.

import { ImageError, imageOf, readImage } from "./images.js";

const form = document.getElementById("composer");
const text = document.getElementById("question");
const attachment = document.getElementById("attachment");
const preview = document.getElementById("preview");
const problem = document.getElementById("problem");
const suggestions = document.getElementById("suggestions");
const drop = document.getElementById("drop");
const send = document.getElementById("send");
const stop = document.getElementById("stop");

let image = null; // {blob, thumbnail, name}
let isRunning = false;
let isEmpty = true; // the conversation, not the text

function refresh() {
  attachment.hidden = image === null;
  attachment.querySelector("img").src = image?.thumbnail ?? "data:,";
  attachment.querySelector(".name").textContent = image?.name ?? "";
  preview.hidden = image === null;
  for (const element of document.querySelectorAll(".invitation")) element.hidden = image !== null;
  suggestions.hidden = image === null || !isEmpty || text.value !== "" || isRunning;
  const hadFocus = document.activeElement === send || document.activeElement === stop;
  send.hidden = isRunning;
  stop.hidden = !isRunning;
  send.disabled = text.value.trim() === "";
  if (hadFocus) isRunning ? stop.focus() : focusComposer();
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

function tell(message) {
  problem.textContent = message;
  problem.hidden = message === "";
}

/** Show whether an answer is being made, and whether the conversation has a turn. */
export function setComposer({ running, empty }) {
  isRunning = running;
  isEmpty = empty;
  refresh();
}

/** Forget text and image, and begin at the text. */
export function clearComposer() {
  setImage(null);
  text.value = "";
  tell("");
  refresh();
}

/** Move the focus to the button that stops the answer. */
export function focusStop() {
  stop.focus();
}

/** Put the cursor where the question is written, but not on a phone, where a keyboard would cover the page. */
export function focusComposer() {
  if (!matchMedia("(pointer: coarse)").matches) text.focus();
}

/** Use another image, or null. The address of the one before is given back. */
function setImage(next) {
  URL.revokeObjectURL(preview.src);
  image = next;
  preview.src = next === null ? "data:," : URL.createObjectURL(next.blob);
}

async function attach(file) {
  try {
    setImage(await readImage(file));
    tell("");
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    tell(error.message);
  }
  refresh();
  focusComposer();
}

function listenToFiles() {
  for (const [button, id] of [[".choose", "file"], [".camera", "camera-file"]]) {
    const input = document.getElementById(id);
    for (const each of document.querySelectorAll(button)) each.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      if (input.files.length > 0) attach(input.files[0]);
      input.value = "";
    });
  }
}

function take(event, transfer) {
  const file = imageOf(transfer);
  if (file) {
    event.preventDefault();
    attach(file);
  }
  return file !== null;
}

function listenToDrops() {
  let depth = 0; // of elements that the drag has entered and not left
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!isFile(event)) return;
    depth++;
    drop.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (isFile(event)) drop.hidden = --depth <= 0;
  });
  addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    depth = 0;
    drop.hidden = true;
    if (document.querySelector("dialog[open]")) return;
    if (!take(event, event.dataTransfer)) tell("That is not an image. JPEG, PNG and WebP work.");
  });
  addEventListener("paste", (event) => take(event, event.clipboardData));
}

/** Begin to listen. `onAsk` gets {text, image}, `onStop` nothing. */
export function listen({ onAsk, onStop }) {
  const submit = () => {
    if (isRunning || text.value.trim() === "") return;
    const question = { text: text.value.trim(), image };
    clearComposer();
    onAsk(question);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  text.addEventListener("input", refresh);
  text.addEventListener("keydown", (event) => {
    // Enter also ends a word of an input method, such as for Japanese; that is no question yet.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  stop.addEventListener("click", onStop);
  document.getElementById("page").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isRunning) onStop();
  });
  attachment.querySelector("button").addEventListener("click", () => {
    setImage(null);
    refresh();
    focusComposer();
  });
  for (const button of suggestions.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      text.value = button.textContent;
      submit();
    });
  }
  listenToFiles();
  listenToDrops();
  refresh();
}
