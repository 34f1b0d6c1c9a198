// Chooses light or dark before the page is drawn. The system decides, until the switch is set otherwise.
"use strict";

(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const name = "llava-theme";
  let memory = null; // where a browser gives no storage

  function chosen() {
    try {
      return localStorage.getItem(name);
    } catch {
      return memory;
    }
  }

  function choose(theme) {
    memory = theme;
    try {
      if (theme === null) localStorage.removeItem(name);
      else localStorage.setItem(name, theme);
    } catch {
      // It is remembered until the page is closed.
    }
  }

  function show() {
    const theme = chosen() ?? (system.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    const label = document.querySelector("#theme span");
    if (label) label.textContent = theme === "dark" ? "Light theme" : "Dark theme";
  }

  system.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      // What the system says anyway is not stored, so that the page follows the system again.
      choose(other === (system.matches ? "dark" : "light") ? null : other);
      show();
    });
  });
  show();
})();
