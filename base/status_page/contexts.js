"use strict";
// How many tokens a conversation may have with a model, and how many an answer may have unless the user says.
const contexts = (() => {
  const MOST_TOKENS = 8192, lengths = new Map(); // model -> its context length, once the server has told it

  async function lengthOf(model) {
    if (model && !lengths.has(model)) {
      const answer = await fetch("v1/models", { headers: apiKey.headers() }).then((answer) => answer.json()).catch(() => null);
      for (const { id, max_model_len: length } of answer?.data ?? []) if (length) lengths.set(id, length);
    }
    return lengths.get(model);
  }

  // A quarter of the context, so that a model that never ends leaves room to go on. None while the length is unknown.
  const limitOf = (length) => length ? Math.min(MOST_TOKENS, Math.ceil(length / 4)) : null;

  return { lengthOf, limitOf };
})();
