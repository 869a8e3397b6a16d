// The TCP bus of c/limit.c: u16 length of the channel, u32 length of the payload, channel, payload.
const net = require("net");

exports.listen = (port, publish) => {
  net.createServer((link) => {
    let waiting = Buffer.alloc(0);
    link.on("error", () => {});
    link.on("data", (data) => {
      waiting = waiting.length ? Buffer.concat([waiting, data]) : data;
      let at = 0;
      while (waiting.length - at >= 6) {
        const nameEnd = at + 6 + waiting.readUInt16BE(at);
        const end = nameEnd + waiting.readUInt32BE(at + 2);
        if (waiting.length < end) break;
        publish(waiting.toString("latin1", at + 6, nameEnd), waiting.subarray(nameEnd, end));
        at = end;
      }
      waiting = waiting.subarray(at);
    });
  }).listen(port, "127.0.0.1");
};

exports.channelOf = (url) => new URLSearchParams(url.slice(url.indexOf("?") + 1)).get("channel");
