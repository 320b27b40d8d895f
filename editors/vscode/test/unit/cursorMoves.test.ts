import assert from "node:assert/strict";
import { test } from "node:test";
import { CursorMoves } from "../../src/cursorMoves";

test("a move leaves the text as it was, typing does not", () => {
  const moves = new CursorMoves();
  assert.ok(moves.isMove("a", 1), "looked at for the first time");
  assert.ok(moves.isMove("a", 1));
  assert.ok(!moves.isMove("a", 2), "typed");
  assert.ok(moves.isMove("a", 2));
});

test("documents are told apart, and forgotten when closed", () => {
  const moves = new CursorMoves();
  assert.ok(moves.isMove("a", 5));
  assert.ok(moves.isMove("b", 1));
  moves.closed("a");
  assert.ok(moves.isMove("a", 1));
});
