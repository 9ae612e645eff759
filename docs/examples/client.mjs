// A program in JavaScript that uses a model and its features over the wire.
//
// It asks the model edge for predictions, and sends the outcomes to the store edge when they are
// known. Both are logged there; drift, audits and performance follow.
//
//   npm install @grpc/grpc-js @grpc/proto-loader apache-arrow
//   node client.mjs protos 127.0.0.1:9469 127.0.0.1:9467 requests.json
//
// The file holds a list of {id, time, shop, sold}: who is asked about, when, and how it ended.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { tableFromArrays, tableToIPC } from "apache-arrow";

const [protos, models, features, file] = process.argv.slice(2);
const definition = loader.loadSync(
  ["steadfeast/v1/inference.proto", "steadfeast/v1/features.proto"],
  { includeDirs: [protos], keepCase: true },
);
const { InferenceService, FeatureService } = grpc.loadPackageDefinition(definition).steadfeast.v1;
const plain = grpc.credentials.createInsecure();
const inference = new InferenceService(models, plain);
const log = new FeatureService(features, plain);

function seconds(time) {
  const ms = Date.parse(time);
  return { seconds: Math.floor(ms / 1000), nanos: (ms % 1000) * 1e6 };
}

// Predictions for the rows of one moment: a column per join key, as an Arrow stream.
function predict(time, rows) {
  const table = tableFromArrays({ shop: rows.map((row) => row.shop) });
  const request = {
    model: "sale",
    entities: tableToIPC(table, "stream"),
    request_ids: rows.map((row) => row.id),
    request_time: seconds(time),
  };
  return new Promise((resolve, reject) => {
    inference.Predict(request, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// Outcomes, by the ids that the predictions were given. Sending them twice is harmless.
function label(rows) {
  return new Promise((resolve, reject) => {
    const call = log.LogLabels((error, answer) => (error ? reject(error) : resolve(answer)));
    const labels = rows.map((row) => ({
      request_id: row.id, value: row.sold, known_at: seconds(row.time),
    }));
    call.write({ service: "sale", labels });
    call.end();
  });
}

const moments = Map.groupBy
  ? Map.groupBy(JSON.parse(readFileSync(file)), (row) => row.time)
  : JSON.parse(readFileSync(file)).reduce(
      (found, row) => found.set(row.time, [...(found.get(row.time) ?? []), row]), new Map());
let predicted = 0;
let labelled = 0;
for (const [time, rows] of moments) {
  const answer = await predict(time, rows);
  predicted += answer.values.length;
  labelled += Number((await label(rows)).accepted);
}
console.log(JSON.stringify({ predicted, labelled }));
inference.close();
log.close();
