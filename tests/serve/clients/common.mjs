// What the checks of both npm clients share; see common.py.

import assert from "node:assert/strict";

export const URL_ = `${process.env.FOREAL_URL}/v1`;
export const BUSY_URL = `${process.env.FOREAL_BUSY_URL}/v1`;
export const MODEL = "foreal-demo";
export const QUESTION = "Kim has 3 books. Tom has 5 books. How many has Kim?";
export const SUM = "What is 42 plus 13?";
export const LONG = "a book ".repeat(3000);
export const ENDLESS = { policy: "wait", lead_probability: 1.0, repetition_penalty: 1.3 };

export async function asked(fields) {
  const answer = await fetch(`${URL_}/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ messages: [{ role: "user", content: QUESTION }], ...fields }),
  });
  return (await answer.json()).choices[0].message;
}

export async function untilIdle() {
  for (let tries = 0; tries < 600; tries += 1) {
    const page = await (await fetch(`${process.env.FOREAL_URL}/metrics`)).text();
    if (/^foreal:num_requests_under_way 0/m.test(page)) return;
    await new Promise((go) => setTimeout(go, 100));
  }
  assert.fail("the server still writes for somebody who left");
}

// Between two of the answers that take the busy server's row the row is free for a moment.
export async function refusedAsBusy(call) {
  for (let tries = 0; tries < 5; tries += 1) {
    try {
      await call();
    } catch (error) {
      assert.equal(error.status ?? error.statusCode, 429);
      return;
    }
  }
  assert.fail("the busy server answers");
}

export async function run(client, checks) {
  let failed = 0;
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      console.log(`${client.padEnd(14)} ${name.padEnd(18)} ok`);
    } catch (error) {
      failed = 1;
      console.log(`${client.padEnd(14)} ${name.padEnd(18)} FAILED`);
      console.error(error);
    }
  }
  process.exit(failed);
}
