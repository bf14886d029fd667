import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, streamText, tool } from "ai";
import { z } from "zod";
import { BUSY_URL, ENDLESS, LONG, MODEL, QUESTION, SUM, URL_, asked, refusedAsBusy, run, untilIdle } from "./common.mjs";

const provider = (url) =>
  createOpenAICompatible({ name: "foreal", baseURL: url, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true });
const model = provider(URL_)(MODEL);
const body = (fields) => ({ foreal: fields });
const add = tool({
  description: "Add two whole numbers.",
  inputSchema: z.object({ a: z.number().int(), b: z.number().int() }),
  execute: async ({ a, b }) => a + b,
});

await run("ai", {
  async answer() {
    const result = await generateText({ model, prompt: QUESTION, seed: 3, maxRetries: 0 });
    const expected = await asked({ seed: 3 });
    assert.equal(result.text, expected.content);
    assert.equal(result.reasoningText, expected.reasoning_content);
    assert.equal(result.finishReason, "stop");
  },
  async streamed() {
    const result = streamText({ model, prompt: QUESTION, seed: 3, maxRetries: 0 });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    const expected = await asked({ seed: 3 });
    assert.equal(text, expected.content);
    assert.equal(await result.reasoningText, expected.reasoning_content);
    assert.ok((await result.usage).outputTokens > 0);
  },
  async two_tool_turns() {
    const messages = [{ role: "user", content: SUM }];
    const ids = new Set();
    for (let turn = 0; turn < 2; turn += 1) {
      const result = await generateText({ model, messages, tools: { add }, toolChoice: "required", maxRetries: 0 });
      assert.equal(result.finishReason, "tool-calls");
      assert.equal(result.toolCalls.length, 1);
      ids.add(result.toolCalls[0].toolCallId);
      messages.push(...result.response.messages);
    }
    assert.equal(ids.size, 2);
  },
  async structured() {
    const output = Output.object({ schema: z.object({ value: z.number().int() }) });
    const result = await generateText({ model, prompt: QUESTION, output, seed: 1, maxRetries: 0 });
    assert.ok(Number.isInteger(result.output.value));
  },
  async overflow() {
    await assert.rejects(generateText({ model, prompt: LONG, maxRetries: 0 }), (error) => error.statusCode === 400);
  },
  async cancel() {
    const control = new AbortController();
    const result = streamText({
      model,
      prompt: QUESTION,
      maxRetries: 0,
      abortSignal: control.signal,
      providerOptions: body(ENDLESS),
      onError() {},
    });
    for await (const part of result.fullStream) if (part.type === "reasoning-delta") break;
    control.abort();
    await untilIdle();
  },
  async busy() {
    const busy = provider(BUSY_URL)(MODEL);
    await refusedAsBusy(() => generateText({ model: busy, prompt: QUESTION, maxRetries: 0 }));
  },
});
