// How apps and programs call this relay: code, commands and settings.

const UNSEEN = /[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const ODD = /[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;

/**
 * Snippets by language or program. `model` may be any text: it is quoted for the shell and each language.
 * `privateCa`: callers must be told to trust the relay's own authority, by its file.
 */
export function snippets(base: string, key: string, model: string, privateCa = false): Record<string, string> {
  const trust = privateCa ? "--cacert relay-ca.crt " : "";
  const run = (comment: string, variable: string, command: string) =>
    privateCa ? `${comment} run it as: ${variable}=relay-ca.crt ${command}\n` : "";
  const pem = (variable: string) => (privateCa ? `export ${variable}=relay-ca.crt\n` : "");
  // JSON strings are valid in Python, JavaScript and YAML too. Control characters and those that change
  // the direction of text are escaped, so that the line is what it looks like.
  const name = JSON.stringify(model).replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return {
    curl: `curl -N ${trust}${base}/chat/completions \\
  -H "Authorization: Bearer ${key}" \\
  -H "Content-Type: application/json" \\
  -d '{"model": ${name.replaceAll("'", "'\\''")}, "stream": true,
       "messages": [{"role": "user", "content": "Hello"}]}'`,
    Python: `${run("#", "SSL_CERT_FILE", "python app.py")}from openai import OpenAI

client = OpenAI(base_url="${base}", api_key="${key}")
answer = client.chat.completions.create(
    model=${name},
    messages=[{"role": "user", "content": "Hello"}],
    stream=True,
)
for chunk in answer:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)`,
    JavaScript: `${run("//", "NODE_EXTRA_CA_CERTS", "node app.mjs")}import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${base}", apiKey: "${key}" });
const answer = await client.chat.completions.create({
  model: ${name},
  messages: [{ role: "user", content: "Hello" }],
  stream: true,
});
for await (const chunk of answer)
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`,
    LangChain: `${run("#", "SSL_CERT_FILE", "python app.py")}from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url="${base}", api_key="${key}", model=${name})
for chunk in model.stream("Hello"):
    print(chunk.content, end="", flush=True)`,
    "Claude Code": `export ANTHROPIC_BASE_URL=${base.replace(/\/v1$/, "")}
export ANTHROPIC_AUTH_TOKEN=${key}
export ANTHROPIC_SMALL_FAST_MODEL=${word(model)}
${pem("NODE_EXTRA_CA_CERTS")}claude --model ${word(model)}`,
    Aider: `export OPENAI_API_BASE=${base}
export OPENAI_API_KEY=${key}
${pem("SSL_CERT_FILE")}aider --model ${word(`openai/${model}`)}`,
    "Open WebUI": `export OPENAI_API_BASE_URLS=${base}
export OPENAI_API_KEYS=${key}
${pem("SSL_CERT_FILE")}open-webui serve`,
    Continue: `# ~/.continue/config.yaml
name: wai
version: 0.0.1
schema: v1
models:
  - name: ${name}
    provider: openai
    model: ${name}
    apiBase: ${base}
    apiKey: ${key}${privateCa ? "\n    requestOptions:\n      caBundlePath: relay-ca.crt" : ""}`,
    Cline: `API Provider: OpenAI Compatible
Base URL:     ${base}
API Key:      ${key}
Model ID:     ${model.replace(UNSEEN, "?")}${privateCa ? "\n\nStart the editor with NODE_EXTRA_CA_CERTS=relay-ca.crt" : ""}`,
  };
}

/** A text as one word of a shell. One with characters that are not seen is written as its bytes. */
function word(text: string): string {
  if (!ODD.test(text)) return `'${text.replaceAll("'", "'\\''")}'`;
  const bytes = [...new TextEncoder().encode(text)].map((byte) => `\\0${byte.toString(8).padStart(3, "0")}`);
  return `"$(printf '%b' '${bytes.join("")}')"`;
}
