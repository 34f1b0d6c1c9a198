// The list of conversations. On a narrow screen it lies over the page, and is open or closed.

const sidebar = document.getElementById("sidebar");
const page = document.getElementById("page");
const shade = document.getElementById("shade");
const opener = document.getElementById("open-sidebar");
const list = document.getElementById("conversations");
const template = document.getElementById("conversation-template");

/** Close the list where it lies over the page. The focus goes back to the button that opened it. */
export function closeSidebar() {
  if (!sidebar.classList.contains("open")) return;
  sidebar.classList.remove("open");
  opener.setAttribute("aria-expanded", "false");
  shade.hidden = true;
  page.inert = false;
  opener.focus();
}

function openSidebar() {
  sidebar.classList.add("open");
  opener.setAttribute("aria-expanded", "true");
  shade.hidden = false;
  page.inert = true;
  document.getElementById("close-sidebar").focus();
}

opener.addEventListener("click", openSidebar);
shade.addEventListener("click", closeSidebar);
document.getElementById("close-sidebar").addEventListener("click", closeSidebar);
sidebar.addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeSidebar();
});
// A window that becomes wide shows the list beside the page.
matchMedia("(min-width: 800px)").addEventListener("change", closeSidebar);

/** Show the conversations, newest first. `actions` are {open, remove}; both get a conversation. */
export function showConversations(conversations, { current, actions }) {
  const items = conversations.map((conversation) => {
    const item = template.content.firstElementChild.cloneNode(true);
    const open = item.querySelector(".open");
    const remove = item.querySelector(".delete");
    item.querySelector(".label").textContent = conversation.title;
    item.querySelector("img").hidden = !conversation.thumbnail;
    if (conversation.thumbnail) item.querySelector("img").src = conversation.thumbnail;
    if (conversation.id === current) open.setAttribute("aria-current", "true");
    remove.setAttribute("aria-label", `Delete ${conversation.title}`);
    open.addEventListener("click", () => actions.open(conversation));
    remove.addEventListener("click", () => actions.remove(conversation));
    return item;
  });
  list.replaceChildren(...items);
}
