/* The physical limit: what a WebSocket fan-out costs when a server does nothing else.
 *
 * limit [--batched] WS_PORT BUS_PORT
 *
 * One process, one epoll, 127.0.0.1. A WebSocket on any path is registered on the channel of `?channel=`. An event
 * comes over a TCP connection to the bus port as
 *     u16 length of the channel, u32 length of the payload (big endian), channel, payload
 * and is sent to each socket of the channel: one frame built once, one send() for each socket and frame. --batched
 * joins all events that one read of the bus brought for a channel into one send() for each socket.
 *
 * No authentication, no envelope, no bookkeeping, no backpressure: who does not read fast enough is closed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUCKETS 65536
#define BUS_BUFFER (1 << 20)
#define MAX_REQUEST 16384

struct channel {
    char *name;
    struct conn **members;
    size_t count, room;
    char *waiting; /* frames that leave together, --batched */
    size_t waiting_size, waiting_room;
    struct channel *next;       /* in the bucket */
    struct channel *next_dirty; /* has something waiting */
    bool dirty;
};

enum kind { WS_LISTENER, BUS_LISTENER, BUS, HANDSHAKE, OPEN };

struct conn {
    int fd;
    enum kind kind;
    char *in; /* of a handshake or a bus link */
    size_t have;
    struct channel *channel;
    size_t index; /* in its channel's members */
};

static struct channel *buckets[BUCKETS];
static struct channel *dirty;
static int epoll_fd;
static bool batched;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *must(void *memory)
{
    if (memory == NULL)
        die("memory");
    return memory;
}

/* ---- SHA-1 and base64: only for Sec-WebSocket-Accept ------------------------------------------------------------ */

static uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1(const char *text, size_t size, uint8_t out[20])
{
    uint8_t data[192] = {0}; /* a key and the GUID are 60 bytes: two blocks */
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    size_t blocks = (size + 8) / 64 + 1;
    if (blocks * 64 > sizeof data)
        return;
    memcpy(data, text, size);
    data[size] = 0x80;
    for (int i = 0; i < 8; i++)
        data[blocks * 64 - 1 - i] = (uint8_t)((uint64_t)size * 8 >> (8 * i));
    for (size_t block = 0; block < blocks; block++) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            const uint8_t *p = data + block * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++)
            w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20)
                f = (b & c) | (~b & d), k = 0x5A827999;
            else if (i < 40)
                f = b ^ c ^ d, k = 0x6ED9EBA1;
            else if (i < 60)
                f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
            else
                f = b ^ c ^ d, k = 0xCA62C1D6;
            uint32_t t = rotate(a, 5) + f + e + k + w[i];
            e = d, d = c, c = rotate(b, 30), b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++)
        out[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64_of_20(const uint8_t in[20], char out[29])
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t padded[21] = {0};
    memcpy(padded, in, 20);
    for (int i = 0; i < 7; i++) {
        uint32_t v = (uint32_t)padded[i * 3] << 16 | (uint32_t)padded[i * 3 + 1] << 8 | padded[i * 3 + 2];
        for (int j = 0; j < 4; j++)
            out[i * 4 + j] = set[v >> (18 - 6 * j) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

/* ---- channels ---------------------------------------------------------------------------------------------------- */

static struct channel *channel_of(const char *name, size_t size, bool create)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    struct channel **bucket = &buckets[hash % BUCKETS];
    for (struct channel *c = *bucket; c != NULL; c = c->next)
        if (strlen(c->name) == size && memcmp(c->name, name, size) == 0)
            return c;
    if (!create)
        return NULL;
    struct channel *c = must(calloc(1, sizeof *c));
    c->name = must(strndup(name, size));
    c->next = *bucket;
    return *bucket = c;
}

static void join(struct conn *conn, struct channel *c)
{
    if (c->count == c->room) {
        c->room = c->room ? c->room * 2 : 4;
        c->members = must(realloc(c->members, c->room * sizeof *c->members));
    }
    conn->channel = c;
    conn->index = c->count;
    c->members[c->count++] = conn;
}

static void end(struct conn *conn)
{
    struct channel *c = conn->channel;
    if (c != NULL) { /* the last one takes its place */
        struct conn *last = c->members[--c->count];
        c->members[conn->index] = last;
        last->index = conn->index;
    }
    close(conn->fd);
    free(conn->in);
    free(conn);
}

/* ---- fan-out ------------------------------------------------------------------------------------------------------- */

static void send_to_all(struct channel *c, const char *data, size_t size)
{
    for (size_t i = c->count; i-- > 0;) /* backwards: `end` puts the last one in the place of one that goes */
        if (send(c->members[i]->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size)
            end(c->members[i]);
}

static size_t head_of(size_t size, uint8_t head[10])
{
    head[0] = 0x81; /* a whole text message */
    if (size < 126) {
        head[1] = (uint8_t)size;
        return 2;
    }
    int bytes = size < 65536 ? 2 : 8;
    head[1] = bytes == 2 ? 126 : 127;
    for (int i = 0; i < bytes; i++)
        head[2 + i] = (uint8_t)((uint64_t)size >> (8 * (bytes - 1 - i)));
    return 2 + (size_t)bytes;
}

static void publish(const char *name, size_t name_size, const char *payload, size_t size)
{
    struct channel *c = channel_of(name, name_size, false);
    if (c == NULL)
        return;
    uint8_t head[10];
    size_t head_size = head_of(size, head), need = c->waiting_size + head_size + size;
    if (need > c->waiting_room)
        c->waiting = must(realloc(c->waiting, c->waiting_room = need * 2));
    memcpy(c->waiting + c->waiting_size, head, head_size);
    memcpy(c->waiting + c->waiting_size + head_size, payload, size);
    c->waiting_size = need;
    if (!batched) {
        send_to_all(c, c->waiting, c->waiting_size);
        c->waiting_size = 0;
    } else if (!c->dirty) {
        c->dirty = true;
        c->next_dirty = dirty;
        dirty = c;
    }
}

static void flush(void)
{
    for (; dirty != NULL; dirty = dirty->next_dirty) {
        send_to_all(dirty, dirty->waiting, dirty->waiting_size);
        dirty->waiting_size = 0;
        dirty->dirty = false;
    }
}

/* ---- what comes in --------------------------------------------------------------------------------------------------- */

static void read_bus(struct conn *conn)
{
    ssize_t got = recv(conn->fd, conn->in + conn->have, BUS_BUFFER - conn->have, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            end(conn);
        return;
    }
    conn->have += (size_t)got;
    size_t at = 0;
    while (conn->have - at >= 6) {
        const uint8_t *p = (uint8_t *)conn->in + at;
        size_t name = (size_t)p[0] << 8 | p[1];
        size_t size = (size_t)p[2] << 24 | (size_t)p[3] << 16 | (size_t)p[4] << 8 | p[5];
        if (6 + name + size > BUS_BUFFER) {
            fprintf(stderr, "an event of %zu bytes is too large\n", size);
            exit(1);
        }
        if (conn->have - at < 6 + name + size)
            break;
        publish((char *)p + 6, name, (char *)p + 6 + name, size);
        at += 6 + name + size;
    }
    flush();
    memmove(conn->in, conn->in + at, conn->have - at);
    conn->have -= at;
}

static void shake_hands(struct conn *conn)
{
    ssize_t got = recv(conn->fd, conn->in + conn->have, MAX_REQUEST - 1 - conn->have, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            end(conn);
        return;
    }
    conn->have += (size_t)got;
    conn->in[conn->have] = 0;
    if (strstr(conn->in, "\r\n\r\n") == NULL) {
        if (conn->have == MAX_REQUEST - 1)
            end(conn);
        return;
    }
    char *line_end = strstr(conn->in, "\r\n");
    char *key = strcasestr(conn->in, "\r\nSec-WebSocket-Key:");
    if (key == NULL) {
        end(conn);
        return;
    }
    key += strlen("\r\nSec-WebSocket-Key:");
    key += strspn(key, " ");
    char text[128], accepted[29], answer[256];
    uint8_t digest[20] = {0};
    int size = snprintf(text, sizeof text, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)strcspn(key, " \r"), key);
    sha1(text, (size_t)size, digest);
    base64_of_20(digest, accepted);
    char *name = strstr(conn->in, "channel=");
    if (name != NULL && name < line_end) {
        name += strlen("channel=");
        join(conn, channel_of(name, strcspn(name, "& \r"), true));
    }
    free(conn->in);
    conn->in = NULL;
    conn->kind = OPEN;
    size = snprintf(answer, sizeof answer,
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Accept: %s\r\n\r\n", accepted);
    if (send(conn->fd, answer, (size_t)size, MSG_NOSIGNAL) != size)
        end(conn);
}

static void watch(int fd, enum kind kind)
{
    struct conn *conn = must(calloc(1, sizeof *conn));
    conn->fd = fd;
    conn->kind = kind;
    if (kind == BUS || kind == HANDSHAKE)
        conn->in = must(malloc(kind == BUS ? BUS_BUFFER : MAX_REQUEST));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        die("epoll_ctl");
}

static void let_in(struct conn *listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(fd, listener->kind == WS_LISTENER ? HANDSHAKE : BUS);
    }
}

static void listen_on(const char *port, enum kind kind)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0)
        die(port);
    watch(fd, kind);
}

int main(int argc, char **argv)
{
    batched = argc > 1 && strcmp(argv[1], "--batched") == 0;
    if (argc != 3 + batched) {
        fprintf(stderr, "usage: limit [--batched] WS_PORT BUS_PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    listen_on(argv[1 + batched], WS_LISTENER);
    listen_on(argv[2 + batched], BUS_LISTENER);
    for (;;) {
        /* One event at a time for the kernel's list to hold no connection that another one's event has ended. */
        struct epoll_event event;
        if (epoll_wait(epoll_fd, &event, 1, -1) != 1)
            continue;
        struct conn *conn = event.data.ptr;
        char unread[4096];
        ssize_t got;
        switch (conn->kind) {
        case WS_LISTENER:
        case BUS_LISTENER: let_in(conn); break;
        case BUS: read_bus(conn); break;
        case HANDSHAKE: shake_hands(conn); break;
        case OPEN: /* what clients say is not of interest, only that they go */
            got = recv(conn->fd, unread, sizeof unread, 0);
            if (got == 0 || (got < 0 && errno != EAGAIN))
                end(conn);
        }
    }
}
