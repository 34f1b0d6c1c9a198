// The button that verifies the package, and what comes of it.

import { ServerError } from "./server.js";

const VERDICTS = {
  PASS: "PASS: the program answers as the original model, within what its recipe allows.",
  FAIL: "FAIL: the program is not what was exported.",
};

const button = document.getElementById("verify");
const verdict = document.getElementById("verdict");
const output = document.getElementById("verdict-output");
let running = false;

function say(text, kind = "") {
  verdict.textContent = text;
  verdict.className = kind;
}

/** Show the button where the server can verify, until there is a verdict. `verify` asks for it. */
export function offerVerification(verify, { canVerify }) {
  button.hidden = !canVerify || !output.hidden;
  button.onclick = () => run(verify);
}

async function run(verify) {
  if (running) return;
  running = true;
  button.setAttribute("aria-disabled", "true"); // not disabled: it would lose the focus
  say("Verifying… A large model takes minutes.");
  try {
    const found = await verify();
    say(VERDICTS[found.verdict] ?? found.verdict, found.verdict === "PASS" ? "good" : "wrong");
    output.textContent = found.text;
    output.hidden = false;
    if (document.activeElement === button) output.focus();
    button.hidden = true;
  } catch (error) {
    say(error instanceof ServerError ? error.message : "This page made a mistake.", "wrong");
    if (!(error instanceof ServerError)) console.error(error);
  } finally {
    running = false;
    button.removeAttribute("aria-disabled");
  }
}
