// Icons in the text's colour, on a grid of 24 by 24.

const LINES: Record<string, string> = {
  overview: "M4 4h6v9H4zM14 4h6v4h-6zM14 12h6v8h-6zM4 17h6v3H4z",
  nodes: "M4 4h16v7H4zM4 13h16v7H4zM8 7.5h.01M8 16.5h.01",
  requests: "M3 12h4l3 8 4-16 3 8h4",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  keys: "M11 12l9-9M15.5 7.5l3 3M12 15.5a4 4 0 1 1-8 0 4 4 0 0 1 8 0z",
  usage: "M5 20v-7M12 20V5M19 20v-11",
  try: "M4 5h16v11H11l-5 4v-4H4z",
  settings: "M4 7h8M18 7h2M4 17h2M12 17h8M18 7a3 3 0 1 1-6 0 3 3 0 0 1 6 0zM12 17a3 3 0 1 1-6 0 3 3 0 0 1 6 0z",
  auto: "M4 5h16v11H4zM9 20h6M12 16v4",
  light: "M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M5.6 18.4L7 17M17 7l1.4-1.4",
  dark: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
};

/** Hidden from screen readers: the text or label beside it says the same. */
export function Icon(props: { name: string }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={LINES[props.name] ?? ""} />
    </svg>
  );
}
