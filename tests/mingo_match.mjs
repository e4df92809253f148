// Which documents meet which filters, after mingo. Reads {documents, filters} and writes a list of booleans a filter,
// or the text of mingo's complaint.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, input, output] = process.argv.slice(2);
const mingo = createRequire(`${folder}/`)("mingo");
const { documents, filters } = JSON.parse(readFileSync(input, "utf8"));
const began = process.hrtime.bigint();
const answers = filters.map((filter) => {
  try {
    const query = new mingo.Query(filter);
    return documents.map((document) => query.test(document));
  } catch (error) {
    return String(error);
  }
});
writeFileSync(output, JSON.stringify({ answers, ms: Number(process.hrtime.bigint() - began) / 1e6 }));
