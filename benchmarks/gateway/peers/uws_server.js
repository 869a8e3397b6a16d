// uWebSockets.js: `node uws_server.js PORT BUS_PORT`. Its own topics, which join what is published in one turn.
const uWS = require("uwebsockets");
const bus = require("./bus.js");

const app = uWS.App().ws("/*", {
  idleTimeout: 0,
  maxBackpressure: 16 * 1024 * 1024,
  upgrade: (res, req, context) => {
    res.upgrade(
      { channel: bus.channelOf("?" + req.getQuery()) },
      req.getHeader("sec-websocket-key"),
      req.getHeader("sec-websocket-protocol"),
      req.getHeader("sec-websocket-extensions"),
      context,
    );
  },
  open: (socket) => socket.subscribe(socket.getUserData().channel),
});
app.listen("127.0.0.1", Number(process.argv[2]), (listening) => listening || process.exit(1));
bus.listen(Number(process.argv[3]), (name, payload) => app.publish(name, payload, false));
