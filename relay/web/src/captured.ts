// What a model said in a captured answer: pure. The answer is whatever a server sent, in any dialect.

/** The text of an answer, whole or streamed; "" where none is found in it. */
export function answerText(answer: string): string {
  const whole = parsed(answer);
  if (whole !== undefined) return textIn(whole);
  // A stream of events (`data: {…}`) or of lines of JSON.
  return answer.split("\n").map((line) => textIn(parsed(line.replace(/^data: ?/, "")))).join("");
}

/** A prompt as it is read best: JSON with indents. */
export function readable(prompt: string): string {
  const value = parsed(prompt);
  return value === undefined ? prompt : JSON.stringify(value, null, 2);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

/** The text in one document or event of OpenAI's, Anthropic's or Ollama's API. */
function textIn(value: unknown): string {
  const said = fields(value);
  const choices = list(said["choices"]).map((choice) => {
    const { delta, message, text: plain } = fields(choice);
    return text(fields(delta)["content"]) || text(fields(message)["content"]) || text(plain);
  });
  if (choices.length) return choices.join("");
  const kind = text(said["type"]);
  if (kind.endsWith("output_text.delta")) return text(said["delta"]);
  if (kind === "content_block_delta") return text(fields(said["delta"])["text"]);
  if (kind === "message") return list(said["content"]).map((part) => text(fields(part)["text"])).join("");
  if (said["object"] === "response") {
    return list(said["output"]).flatMap((item) => list(fields(item)["content"])).map((part) => text(fields(part)["text"])).join("");
  }
  return text(fields(said["message"])["content"]) || text(said["response"]);
}

const text = (value: unknown) => (typeof value === "string" ? value : "");
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const fields = (value: unknown) => (typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {});
