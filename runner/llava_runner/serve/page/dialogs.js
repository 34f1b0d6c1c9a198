// The three dialogs: what the package is, the API key, and whether to delete.

import { offerVerification } from "./verification.js";

const FACTS = {
  model: "Model",
  recipe: "Recipe",
  program: "Program",
  context: "Context",
  image_size: "Image size",
  image_tokens: "An image takes",
  engine: "Engine",
  version: "Version",
};
const UNITS = { context: "tokens", image_size: "pixels", image_tokens: "tokens" };
const ENGINES = { cpp: "C++", python: "Python" };

for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

/** Show a dialog and return its `returnValue` once it is closed: "" if it was given up. */
function closed(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

function valueText(name, value) {
  if (name === "recipe") {
    const parts = Object.entries(value).filter(([part]) => part !== "name");
    return `${value.name} (${parts.map(([part, type]) => `${part.replaceAll("_", " ")} ${type}`).join(", ")})`;
  }
  return UNITS[name] ? `${value} ${UNITS[name]}` : (ENGINES[value] ?? String(value));
}

function termAndValue(name, value) {
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = FACTS[name];
  description.textContent = valueText(name, value);
  return [term, description];
}

/** Show which package is served, and how it was verified. `facts` are those of the server, `verify` asks for more. */
export function showPackage(facts, { verify }) {
  const known = Object.keys(FACTS).filter((name) => (facts[name] ?? null) !== null);
  document.getElementById("package-facts").replaceChildren(...known.flatMap((name) => termAndValue(name, facts[name])));
  document.getElementById("verification").textContent = facts.verification?.text ?? "The server does not say.";
  const command = facts.verification?.command ?? "";
  const code = document.getElementById("verify-command");
  code.textContent = command;
  code.parentElement.hidden = command === "";
  offerVerification(verify, { canVerify: facts.verification?.can_verify === true });
  return closed(document.getElementById("package-dialog"));
}

/** Ask for the API key, and say if the one before was wrong. Return it, or "" if there is none. */
export function askForKey({ wasWrong }) {
  const dialog = document.getElementById("key-dialog");
  document.getElementById("key-wrong").hidden = !wasWrong;
  document.getElementById("key").value = "";
  return closed(dialog);
}

document.querySelector("#key-dialog form").addEventListener("submit", (event) => {
  event.preventDefault();
  document.getElementById("key-dialog").close(document.getElementById("key").value.trim());
});

/** Ask whether to delete a conversation. Return true if so. */
export async function confirmDeletion({ title }) {
  const dialog = document.getElementById("delete-dialog");
  document.getElementById("delete-text").textContent = `“${title}” and its images are removed from this browser.`;
  return (await closed(dialog)) === "delete";
}

document.querySelector("#delete-dialog .danger").addEventListener("click", () => {
  document.getElementById("delete-dialog").close("delete");
});
