// Runs before the page is drawn, so that a chosen theme doesn't flash.
"use strict";
try {
  const theme = localStorage.getItem("afnio-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch (error) { /* no storage: the system's theme it is */ }
