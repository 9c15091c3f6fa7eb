// The theme: light, dark, or the system's. Stored in this browser. And whether the window is a phone's.

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

const phone = matchMedia("(max-width: 720px)"); // as in style.css
/** Whether tables are laid out for a phone. */
export const narrow = signal(phone.matches);
phone.addEventListener("change", () => (narrow.value = phone.matches));
