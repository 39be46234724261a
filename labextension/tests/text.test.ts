/** Printed text: colours and carriage returns. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { collapsed, spans } from "../src/text";

test("of a line with carriage returns its last state stays", () => {
    assert.equal(collapsed("10%\r20%\r\ndone"), "20%\ndone");
    assert.equal(collapsed("abc\rX"), "Xbc");
    assert.equal(collapsed("12\b\b34"), "34");
    assert.equal(collapsed("\x1b[31m 5%\x1b[0m\r\x1b[32m99%\x1b[0m"), "\x1b[32m99%\x1b[0m");
    assert.equal(collapsed("plain\n"), "plain\n");
});

test("colours become styles, and end", () => {
    assert.deepEqual(spans("a\x1b[1;31mb\x1b[0mc"), [
        { text: "a", style: [] },
        { text: "b", style: ["bold", "red"] },
        { text: "c", style: [] },
    ]);
    assert.deepEqual(spans("\x1b[94;42mx\x1b[39;49my"), [
        { text: "x", style: ["bright-blue", "bg-green"] },
        { text: "y", style: [] },
    ]);
    assert.deepEqual(spans("\x1b[38;5;196mx\x1b[48;2;1;2;999my"), [
        { text: "x", style: [], colour: "rgb(255,0,0)" },
        { text: "y", style: [], colour: "rgb(255,0,0)", background: "rgb(1,2,255)" },
    ]);
});

test("no other escape sequence is left, whatever it is", () => {
    const odd = "\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b[2J\x1b[?25l\x1b(Bc\x00\x08\x7f\x1b[38;2;url(x)md\x1b]open";
    const text = spans(odd).map((span) => span.text).join("");
    assert.ok(!/[\x00-\x08\x1b\x7f]/.test(text));
    assert.ok(text.startsWith("ab"));
    assert.deepEqual(spans("\x1b[999999999999999999999mx"), [{ text: "x", style: [] }]);
    assert.deepEqual(spans("\x1b[38mx\x1b[38;5my"), [{ text: "x", style: [] }, { text: "y", style: ["black"] }]);
});
