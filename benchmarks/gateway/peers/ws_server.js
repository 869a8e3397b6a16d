// npm ws: `node ws_server.js PORT BUS_PORT`. A set of sockets for each channel, one send for each.
const { WebSocketServer } = require("ws");
const bus = require("./bus.js");

const channels = new Map();
const server = new WebSocketServer({ port: Number(process.argv[2]), host: "127.0.0.1", perMessageDeflate: false, backlog: 4096 });
server.on("connection", (socket, request) => {
  const name = bus.channelOf(request.url);
  if (!channels.has(name)) channels.set(name, new Set());
  const sockets = channels.get(name).add(socket);
  socket.on("close", () => sockets.delete(socket));
  socket.on("error", () => {});
});
bus.listen(Number(process.argv[3]), (name, payload) => {
  for (const socket of channels.get(name) || []) socket.send(payload, { binary: false });
});
