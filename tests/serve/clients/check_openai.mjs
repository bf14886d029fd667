import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { BUSY_URL, ENDLESS, LONG, MODEL, QUESTION, SUM, URL_, asked, refusedAsBusy, run, untilIdle } from "./common.mjs";

const client = new OpenAI({ baseURL: URL_, apiKey: "none", maxRetries: 0 });
const ASK = { model: MODEL, messages: [{ role: "user", content: QUESTION }] };
const Answer = z.object({ value: z.number().int() });
const ADD = {
  type: "function",
  function: {
    name: "add",
    description: "Add two whole numbers.",
    parameters: {
      type: "object",
      properties: { a: { type: "integer" }, b: { type: "integer" } },
      required: ["a", "b"],
    },
  },
};

await run("openai (npm)", {
  async answer() {
    const { message } = (await client.chat.completions.create({ ...ASK, seed: 3 })).choices[0];
    const expected = await asked({ seed: 3 });
    assert.equal(message.content, expected.content);
    assert.equal(message.reasoning_content, expected.reasoning_content);
  },
  async streamed() {
    const stream = client.chat.completions.stream({ ...ASK, seed: 3, stream_options: { include_usage: true } });
    let thinking = "";
    for await (const chunk of stream) thinking += chunk.choices[0]?.delta.reasoning_content ?? "";
    const final = await stream.finalChatCompletion();
    const expected = await asked({ seed: 3 });
    assert.equal(final.choices[0].message.content, expected.content);
    assert.equal(final.choices[0].message.role, "assistant");
    assert.equal(thinking, expected.reasoning_content);
    assert.ok(final.usage.completion_tokens > 0);
  },
  async two_tool_turns() {
    const messages = [{ role: "user", content: SUM }];
    const ids = new Set();
    for (let turn = 0; turn < 2; turn += 1) {
      const stream = client.chat.completions.stream({ model: MODEL, messages, tools: [ADD], tool_choice: "required" });
      const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
      assert.equal(finish_reason, "tool_calls");
      assert.equal(message.tool_calls.length, 1);
      const [call] = message.tool_calls;
      assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ["a", "b"]);
      ids.add(call.id);
      messages.push(message, { role: "tool", tool_call_id: call.id, content: "55" });
    }
    assert.equal(ids.size, 2);
  },
  async structured() {
    const answer = await client.chat.completions.parse({
      ...ASK,
      seed: 1,
      response_format: zodResponseFormat(Answer, "answer"),
    });
    assert.ok(Number.isInteger(answer.choices[0].message.parsed.value));
  },
  async overflow() {
    await assert.rejects(
      client.chat.completions.create({ model: MODEL, messages: [{ role: "user", content: LONG }] }),
      (error) => error.status === 400 && error.code === "context_length_exceeded",
    );
  },
  async cancel() {
    const stream = await client.chat.completions.create({ ...ASK, stream: true, ...ENDLESS });
    for await (const _ of stream) break;
    await untilIdle();
  },
  async busy() {
    const busy = new OpenAI({ baseURL: BUSY_URL, apiKey: "none", maxRetries: 0 });
    await refusedAsBusy(() => busy.chat.completions.create(ASK));
  },
});
