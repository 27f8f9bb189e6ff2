// Keys, theme, drawer and live figures. Everything it writes into the page is text.
"use strict";
(() => {
  const root = document.documentElement;
  const drawer = document.getElementById("drawer");
  const help = document.getElementById("help");

  function toggleTheme() {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("afnio-theme", root.dataset.theme); } catch (error) { /* for this page only */ }
    document.dispatchEvent(new Event("afnio:theme"));
  }

  function move(by) {
    const rows = [...document.querySelectorAll("main .row-link")].filter((row) => row.checkVisibility());
    if (!rows.length) return;
    const at = rows.indexOf(document.activeElement);
    const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by));
    rows[next].focus({ preventScroll: true, focusVisible: true });
    rows[next].scrollIntoView({ block: "nearest" });
  }

  // The prompts of the card, as they are in the store: what the page shows has marks in it.
  function prompt(button) {
    return JSON.parse(document.getElementById("prompts").textContent)[Number(button.dataset.prompt)];
  }

  async function copy(button) {
    const label = button.textContent;
    try { await navigator.clipboard.writeText(prompt(button)[1]); button.textContent = "Copied"; }
    catch (error) { button.textContent = "The browser refused"; }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  function download(button) {
    const [name, text] = prompt(button);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
    link.download = name.replace(/[^\w.-]/g, "_") + ".txt";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // A style attribute would need a looser policy.
  function widths() {
    for (const one of document.querySelectorAll("[data-share]")) one.style.width = one.dataset.share + "%";
  }

  function follow(selector) {
    const link = document.querySelector(selector);
    if (link) link.click();
  }

  const keys = {
    j: () => move(1),
    k: () => move(-1),
    "/": () => document.querySelector("[data-search]")?.focus(),
    "?": () => help?.showModal(),
    t: toggleTheme,
    g: () => follow(".mark"),
    "[": () => follow("a[rel=prev]"),
    "]": () => follow("a[rel=next]"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && field) { field.blur(); return; }
    if ((field && field.type !== "checkbox") || document.querySelector("dialog[open]")) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button?.dataset.do === "theme") toggleTheme();
    if (button?.dataset.do === "help") help?.showModal();
    if (button?.dataset.do === "copy") copy(button);
    if (button?.dataset.do === "download") download(button);
    if (button?.dataset.do === "close") button.closest("dialog")?.close();
    // A click beside an open dialog closes it.
    if (event.target instanceof HTMLDialogElement && event.target.open) {
      const box = event.target.getBoundingClientRect();
      if (event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom) event.target.close();
    }
  });

  // The list's filters apply as they are set; the boxes count what is marked for a comparison.
  const order = [];
  function marked() {
    const button = document.querySelector("[data-compare]");
    if (button) button.disabled = document.querySelectorAll("[name=run]:checked").length < 2;
  }
  document.addEventListener("change", (event) => {
    if (event.target.matches("[name=run]")) {
      const at = order.indexOf(event.target.value);
      if (at >= 0) order.splice(at, 1);
      if (event.target.checked) order.push(event.target.value);
      marked();
    }
    if (event.target.matches("[data-filters] select")) event.target.form.requestSubmit();
  });
  marked();
  // The run that was selected first is the baseline, wherever it is in the list.
  document.querySelector("form[action='/compare']")?.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = [...document.querySelectorAll("[name=run]:checked")].map((box) => box.value);
    chosen.sort((one, other) => order.indexOf(one) - order.indexOf(other));
    location.assign("/compare?" + new URLSearchParams(chosen.map((key) => ["run", key])));
  });

  // What scrolls has to be reachable by keyboard.
  function reachable() {
    for (const box of document.querySelectorAll(".scroll, .tabs, .lines, .input, .prompts .diff")) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }
  reachable();
  widths();
  addEventListener("resize", reachable);

  document.addEventListener("htmx:after:swap", () => {
    reachable();
    widths();
    const body = document.getElementById("drawer-body");
    if (drawer && body?.firstElementChild && body.dataset.fresh !== body.firstElementChild.dataset.key && !drawer.open) drawer.showModal();
  });
  drawer?.addEventListener("close", () => document.getElementById("drawer-body").replaceChildren());

  const place = document.body.dataset.live;
  if (!place) return;
  const source = new EventSource(place);
  const problem = document.querySelector("[data-n=problem]");
  let steps = Number(document.body.dataset.count);
  let about = null, due = null;
  // The tables below are asked for anew, at most every few seconds, while there is news.
  function refresh(ended) {
    const send = () => { due = null; for (const one of document.querySelectorAll("[data-about]")) one.dispatchEvent(new Event("about-changed")); };
    if (ended) { clearTimeout(due); send(); } else if (!due) due = setTimeout(send, 2000);
  }
  source.onmessage = (event) => {
    const news = JSON.parse(event.data);
    problem.textContent = news.problem || "";
    problem.hidden = !news.problem;
    for (const [name, value] of Object.entries(news.numbers || {})) {
      for (const one of document.querySelectorAll(`[data-n="${name}"]`)) {
        if (one.textContent !== value) one.textContent = value;
        if (name === "status") one.dataset.status = value;
      }
    }
    if (news.curves) document.dispatchEvent(new CustomEvent("afnio:curves", { detail: news.curves }));
    if (news.steps !== undefined && news.steps !== steps) {
      steps = news.steps;
      document.querySelector("[data-steps]")?.dispatchEvent(new Event("steps-changed"));
    }
    if (news.about !== undefined) {
      const text = JSON.stringify(news.about);
      if (news.ended || (about !== null && text !== about)) refresh(news.ended);
      about = text;
    }
    if (news.ended) source.close();
  };
  // A browser keeps few connections to one host: a page that is left gives its own back.
  addEventListener("pagehide", () => source.close());
})();
