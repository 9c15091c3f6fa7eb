import { equal } from "node:assert/strict";
import { test } from "node:test";
import { answerText, readable } from "../../../relay/web/src/captured";

test("what was said is found in a whole answer and in a stream of each dialect", () => {
  const stream = 'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\ndata: {"choices":[{"delta":{"content":"Hel"}}]}\n\ndata: {"choices":[{"delta":{"content":"lo"}}]}\n\ndata: [DONE]\n\n';
  equal(answerText(stream), "Hello");
  equal(answerText('{"choices":[{"message":{"content":"Hello"}}]}'), "Hello");
  equal(answerText('{"choices":[{"text":"Hello"}]}'), "Hello");
  equal(answerText('event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"Hello"}}\n\n'), "Hello");
  equal(answerText('{"type":"message","content":[{"type":"text","text":"Hello"}]}'), "Hello");
  equal(answerText('data: {"type":"response.output_text.delta","delta":"Hello"}\n\n'), "Hello");
  equal(answerText('{"object":"response","output":[{"content":[{"type":"output_text","text":"Hello"}]}]}'), "Hello");
  equal(answerText('{"message":{"content":"Hel"}}\n{"message":{"content":"lo"},"done":true}\n'), "Hello");
  equal(answerText('{"response":"Hel"}\n{"response":"lo","done":true}\n'), "Hello");
});

test("whatever a server sends instead is no text, and breaks nothing", () => {
  for (const odd of ["", "<html>", "null", "7", '{"choices":7}', '{"choices":[null]}', '{"choices":[{"delta":[]}]}', 'data: {"type":3}', "[[[", '{"message":"x"}']) {
    equal(answerText(odd), "", odd);
  }
});

test("a prompt that is no JSON is shown as it is", () => {
  equal(readable('{"a":1}'), '{\n  "a": 1\n}');
  equal(readable('{"a":'), '{"a":');
});
