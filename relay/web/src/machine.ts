// A history of percents as lines of an SVG: pure.

/** The points of each unbroken run of `history`; a lone value is a short line. */
export function sparkline(history: readonly (number | null)[], width: number, height: number): string[] {
  const step = history.length > 1 ? width / (history.length - 1) : width;
  const runs: string[] = [];
  let run: string[] = [];
  const end = () => {
    const [only] = run;
    if (run.length === 1 && only) run.push(`${Number(only.split(",")[0]) + 1},${only.split(",")[1]}`);
    if (run.length) runs.push(run.join(" "));
    run = [];
  };
  history.forEach((use, at) => {
    if (use === null) return end();
    const y = 1 + (height - 2) * (1 - Math.min(100, Math.max(0, use)) / 100);
    run.push(`${round(at * step)},${round(y)}`);
  });
  end();
  return runs;
}

const round = (value: number) => Math.round(value * 10) / 10;
