// The theme: light, dark, or the system's. Stored in this browser.

import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";
const next: Record<Theme, Theme> = { auto: "light", light: "dark", dark: "auto" };
const kept = localStorage.getItem("wai-theme");

export const theme = signal<Theme>(kept === "light" || kept === "dark" ? kept : "auto");
export const turn = () => (theme.value = next[theme.value]);

effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
  localStorage.setItem("wai-theme", theme.value);
});
