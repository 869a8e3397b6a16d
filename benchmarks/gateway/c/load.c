/* The load client: many WebSockets, and the publisher of what they receive, in one process with one epoll.
 *
 * It knows no server. What a socket says, and the bytes that publish an event, are templates of the caller:
 *     777777777            (9 digits)  number of the channel: socket i is on channel i % channels
 *     8888888888888888888  (19 digits) nanoseconds since 1970, when the event was published
 *     TOKEN                            the socket's line of the token file
 * The marks are digits of fixed width, so that lengths written into a template hold, in any encoding.
 *
 * An event counts as delivered where `"t":"` and its time stand in a frame. Stages: connect every socket and say the
 * script; print a line of JSON; then for each line on stdin (end of file: leave) publish for --warmup and --seconds, in
 * a closed loop with --window events on the way or open with --rate events a second, and print a line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define CHANNEL_MARK "777777777"
#define STAMP_MARK "8888888888888888888"
#define OFFSET_MARK "1666666666" /* counts up by one for each event of a channel, from 1000000001 */
#define OFFSET_BASE 1000000001ull
#define TOKEN_MARK "TOKEN"
#define DELIVERY "\"t\":\""
#define STAMP_DIGITS 19
#define MAX_STEPS 16
#define MAX_SOCKETS 100000
#define READ_SIZE (256 * 1024)
#define SILENCE_S 10 /* nothing comes for so long: something is broken */

struct step {
    bool is_wait; /* for a frame with this text; otherwise say it */
    const char *text;
};

enum stage { HANDSHAKE, SCRIPT, READY, GONE };

struct conn {
    int fd;
    enum stage stage;
    int step, index;
    char *rest; /* an incomplete frame or handshake */
    size_t rest_size;
};

static struct {
    int port, publish_port, sockets, channels, stalled, at_once, window;
    double rate, warmup, seconds, patience;
    const char *path, *header, *contains;
    pid_t pid;
} set = {.sockets = 1, .channels = 1, .at_once = 100, .window = 1, .warmup = 1, .seconds = 3, .patience = 60,
         .path = "/"};

static struct step steps[MAX_STEPS];
static int step_count;
static char **tokens;
static struct conn *conns;
static int epoll_fd, publish_fd = -1, started, ready, gone, without;
static char buffer[READ_SIZE * 2];

/* ---- small things ---------------------------------------------------------------------------------------------------- */

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "refused");
    exit(1);
}

static void *must(void *memory)
{
    if (memory == NULL)
        die("memory");
    return memory;
}

static uint64_t clock_ns(clockid_t id)
{
    struct timespec t = {0};
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* user + system time of the server with all its threads */
static uint64_t server_cpu_ns(void)
{
    clockid_t id;
    return set.pid && clock_getcpuclockid(set.pid, &id) == 0 ? clock_ns(id) : 0;
}

static void put_digits(char *at, uint64_t value, int width)
{
    while (width-- > 0) {
        at[width] = (char)('0' + value % 10);
        value /= 10;
    }
}

static char *read_file(const char *name, size_t *size)
{
    FILE *file = fopen(name, "rb");
    if (file == NULL)
        die(name);
    char *data = must(malloc(1 << 24));
    *size = fread(data, 1, (1 << 24) - 1, file);
    data[*size] = 0;
    fclose(file);
    return data;
}

/* A copy of `text` with channel and token of this socket. */
static char *filled(const char *text, int index)
{
    const char *token = tokens ? tokens[index] : "";
    char *out = must(malloc(strlen(text) + strlen(token) * 2 + 1)), *to = out;
    while (*text) {
        if (strncmp(text, CHANNEL_MARK, strlen(CHANNEL_MARK)) == 0) {
            put_digits(to, (uint64_t)(index % set.channels), strlen(CHANNEL_MARK));
            to += strlen(CHANNEL_MARK);
            text += strlen(CHANNEL_MARK);
        } else if (tokens && strncmp(text, TOKEN_MARK, strlen(TOKEN_MARK)) == 0) {
            to = stpcpy(to, token);
            text += strlen(TOKEN_MARK);
        } else
            *to++ = *text++;
    }
    *to = 0;
    return out;
}

/* ---- times of delivery: microseconds, in buckets narrower than 1 % ------------------------------------------------- */

#define BUCKETS 256
static uint64_t histogram[BUCKETS * 48], counted, longest;

static void count_latency(uint64_t us)
{
    int shift = us < BUCKETS ? 0 : 56 - __builtin_clzll(us); /* us >> shift is in 128..255 */
    size_t at = (size_t)(shift * BUCKETS) + (us >> shift);
    if (at < sizeof histogram / sizeof *histogram)
        histogram[at]++;
    counted++;
    if (us > longest)
        longest = us;
}

static uint64_t percentile(double share)
{
    uint64_t seen = 0, wanted = (uint64_t)(share * (double)counted);
    for (size_t at = 0; at < sizeof histogram / sizeof *histogram; at++)
        if ((seen += histogram[at]) > wanted)
            return (uint64_t)(at % BUCKETS) << (at / BUCKETS);
    return longest;
}

/* ---- sockets ----------------------------------------------------------------------------------------------------------- */

static uint64_t deliveries, bytes_in, frames_in;

static void lose(struct conn *c)
{
    if (c->stage != READY)
        fprintf(stderr, "load: socket %d ended before it was ready: %.*s\n", c->index, (int)c->rest_size,
                c->rest ? c->rest : "");
    else
        ready--;
    c->stage = GONE;
    gone++;
    close(c->fd);
}

/* A whole message; the key of the mask is zero, which leaves the text as it is. */
static void say(struct conn *c, int opcode, const char *text, size_t size)
{
    char head[8] = {(char)(0x80 | opcode)}, out[8192];
    size_t head_size = size < 126 ? 2 : 4;
    head[1] = (char)(0x80 | (size < 126 ? size : 126));
    if (size >= 126)
        head[2] = (char)(size >> 8), head[3] = (char)size;
    if (head_size + 4 + size > sizeof out)
        die("the message is too long");
    memcpy(out, head, head_size);
    memset(out + head_size, 0, 4);
    memcpy(out + head_size + 4, text, size);
    if (send(c->fd, out, head_size + 4 + size, MSG_NOSIGNAL) != (ssize_t)(head_size + 4 + size))
        lose(c);
}

static void go_on(struct conn *c)
{
    while (c->stage == SCRIPT && c->step < step_count && !steps[c->step].is_wait) {
        char *text = filled(steps[c->step++].text, c->index);
        say(c, 1, text, strlen(text));
        free(text);
    }
    if (c->stage == SCRIPT && c->step == step_count) {
        c->stage = READY;
        ready++;
    }
}

static void got_frame(struct conn *c, int opcode, const char *data, size_t size, uint64_t now)
{
    if (opcode == 9) { /* ping */
        say(c, 10, data, size);
        return;
    }
    if (opcode == 8) {
        fprintf(stderr, "load: socket %d was closed: %d %.*s\n", c->index,
                size >= 2 ? (uint8_t)data[0] << 8 | (uint8_t)data[1] : 0, size > 2 ? (int)size - 2 : 0, data + 2);
        lose(c);
        return;
    }
    frames_in++;
    if (c->stage == SCRIPT && memmem(data, size, steps[c->step].text, strlen(steps[c->step].text)) != NULL) {
        c->step++;
        go_on(c);
    }
    bool is_event = false;
    for (const char *at = data, *end = data + size;
         (at = memmem(at, (size_t)(end - at), DELIVERY, strlen(DELIVERY))) != NULL;) {
        uint64_t stamp = 0;
        at += strlen(DELIVERY);
        for (int i = 0; i < STAMP_DIGITS && at < end; i++)
            stamp = stamp * 10 + (uint64_t)(*at++ - '0');
        deliveries++;
        is_event = true;
        count_latency(now > stamp ? (now - stamp) / 1000 : 0);
    }
    if (is_event && set.contains && memmem(data, size, set.contains, strlen(set.contains)) == NULL)
        without++;
}

static size_t got_bytes(struct conn *c, char *data, size_t size, uint64_t now)
{
    size_t at = 0;
    if (c->stage == HANDSHAKE) {
        char *end = memmem(data, size, "\r\n\r\n", 4);
        if (end == NULL)
            return 0;
        if (size < 12 || memcmp(data + 9, "101", 3) != 0) {
            fprintf(stderr, "load: refused: %.*s\n", (int)size, data);
            lose(c);
            return size;
        }
        at = (size_t)(end - data) + 4;
        c->stage = SCRIPT;
        go_on(c);
    }
    while (c->stage != GONE && size - at >= 2) {
        const uint8_t *p = (uint8_t *)data + at;
        uint64_t length = p[1] & 127;
        size_t head = length == 126 ? 4 : length == 127 ? 10 : 2;
        if (size - at < head)
            break;
        if (head > 2) {
            length = 0;
            for (size_t i = 2; i < head; i++)
                length = length << 8 | p[i];
        }
        if (size - at - head < length)
            break;
        got_frame(c, p[0] & 15, data + at + head, length, now);
        at += head + length;
    }
    return at;
}

static void receive(struct conn *c)
{
    size_t have = c->rest_size;
    if (have > READ_SIZE)
        die("a frame is too large");
    memcpy(buffer, c->rest ? c->rest : "", have);
    ssize_t got = recv(c->fd, buffer + have, READ_SIZE, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            lose(c);
        return;
    }
    bytes_in += (uint64_t)got;
    have += (size_t)got;
    size_t used = got_bytes(c, buffer, have, clock_ns(CLOCK_REALTIME));
    free(c->rest);
    c->rest = NULL;
    c->rest_size = c->stage == GONE ? 0 : have - used;
    if (c->rest_size) {
        c->rest = must(malloc(c->rest_size));
        memcpy(c->rest, buffer + used, c->rest_size);
    }
}

static int dial(int port, bool small)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, size = 4096;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0)
        die("socket");
    if (small)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void watch(int fd, struct conn *c)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        die("epoll_ctl");
}

static void open_socket(struct conn *c, int index)
{
    char request[16384], *path = filled(set.path, index), *header = filled(set.header ? set.header : "", index);
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s\r\n",
                        path, set.port, header, *header ? "\r\n" : "");
    free(path);
    free(header);
    c->index = index;
    c->fd = dial(set.port, index >= set.sockets - set.stalled);
    if (send(c->fd, request, (size_t)size, MSG_NOSIGNAL) != size)
        die("send");
    watch(c->fd, c);
}

/* ---- the publisher --------------------------------------------------------------------------------------------------- */

static char *event_template, *outgoing;
static size_t event_size, out_size, out_room;
static size_t channel_marks[8], stamp_marks[8], offset_marks[8];
static int channel_mark_count, stamp_mark_count, offset_mark_count;
static uint64_t published;

static int find_marks(const char *mark, size_t *marks)
{
    int count = 0;
    for (char *at = event_template;
         count < 8 && (at = memmem(at, event_size - (size_t)(at - event_template), mark, strlen(mark))) != NULL;
         at += strlen(mark))
        marks[count++] = (size_t)(at - event_template);
    return count;
}

static void flush(void)
{
    ssize_t sent = send(publish_fd, outgoing, out_size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN)
        die("the publisher's connection");
    size_t done = sent > 0 ? (size_t)sent : 0;
    memmove(outgoing, outgoing + done, out_size - done);
    out_size -= done;
    struct epoll_event event = {.events = EPOLLIN | (out_size ? (uint32_t)EPOLLOUT : 0u), .data.ptr = &publish_fd};
    static bool waits;
    if (waits != (out_size > 0) && epoll_ctl(epoll_fd, EPOLL_CTL_MOD, publish_fd, &event) != 0)
        die("epoll_ctl");
    waits = out_size > 0;
}

static void publish(uint64_t count)
{
    if (count == 0)
        return;
    if (out_size + count * event_size > out_room)
        outgoing = must(realloc(outgoing, out_room = (out_size + count * event_size) * 2));
    uint64_t now = clock_ns(CLOCK_REALTIME);
    for (; count > 0; count--) {
        char *at = outgoing + out_size;
        memcpy(at, event_template, event_size);
        for (int i = 0; i < channel_mark_count; i++)
            put_digits(at + channel_marks[i], published % (uint64_t)set.channels, strlen(CHANNEL_MARK));
        for (int i = 0; i < stamp_mark_count; i++)
            put_digits(at + stamp_marks[i], now, STAMP_DIGITS);
        for (int i = 0; i < offset_mark_count; i++)
            put_digits(at + offset_marks[i], OFFSET_BASE + published / (uint64_t)set.channels, strlen(OFFSET_MARK));
        out_size += event_size;
        published++;
    }
    flush();
}

static void connect_publisher(const char *hello_file, const char *event_file)
{
    event_template = read_file(event_file, &event_size);
    channel_mark_count = find_marks(CHANNEL_MARK, channel_marks);
    stamp_mark_count = find_marks(STAMP_MARK, stamp_marks);
    offset_mark_count = find_marks(OFFSET_MARK, offset_marks);
    if (stamp_mark_count == 0)
        die("the event has no time");
    publish_fd = dial(set.publish_port, false);
    watch(publish_fd, (struct conn *)&publish_fd);
    if (hello_file) {
        size_t size;
        char *hello = read_file(hello_file, &size);
        if (send(publish_fd, hello, size, MSG_NOSIGNAL) != (ssize_t)size)
            die("hello");
    }
}

/* ---- the loop ---------------------------------------------------------------------------------------------------------- */

static int timer_fd = -1;
static uint64_t due; /* events whose time has come, open loop */
static bool told;    /* something came on stdin */
static bool left;    /* and it was its end */

static void turn(int timeout_ms)
{
    struct epoll_event events[256];
    int count = epoll_wait(epoll_fd, events, 256, timeout_ms);
    for (int i = 0; i < count; i++) {
        void *what = events[i].data.ptr;
        if (what == &publish_fd) {
            if (events[i].events & EPOLLOUT)
                flush();
            if (events[i].events & ~(uint32_t)EPOLLOUT) { /* answers, nobody reads them */
                ssize_t got = recv(publish_fd, buffer, sizeof buffer - 1, MSG_DONTWAIT);
                if (got == 0)
                    die("the publisher's connection was closed");
                if (got > 0 && (buffer[0] == '-' || memmem(buffer, (size_t)got, "\r\n-", 3) != NULL)) {
                    fprintf(stderr, "load: publishing was refused: %.*s\n", got > 500 ? 500 : (int)got, buffer);
                    exit(1);
                }
            }
        } else if (what == &timer_fd) {
            uint64_t times = 0;
            if (read(timer_fd, &times, sizeof times) == sizeof times)
                due += times;
        } else if (what == &told) {
            char line[64];
            left = read(0, line, sizeof line) <= 0;
            told = true;
        } else if (((struct conn *)what)->stage != GONE)
            receive(what);
    }
}

static void connect_all(void)
{
    uint64_t begun = clock_ns(CLOCK_MONOTONIC), until = begun + (uint64_t)(set.patience * 1e9);
    while (ready + gone < set.sockets) {
        while (started < set.sockets && started - ready - gone < set.at_once) {
            open_socket(&conns[started], started);
            started++; if (started % 16 == 0) turn(0);
        }
        turn(100);
        if (clock_ns(CLOCK_MONOTONIC) > until) {
            fprintf(stderr, "load: only %d of %d sockets are ready\n", ready, set.sockets);
            break;
        }
    }
    printf("{\"ready\": %d, \"failed\": %d, \"connect_seconds\": %.6f, \"deliveries\": %lu, \"bytes\": %lu}\n", ready,
           gone, (double)(clock_ns(CLOCK_MONOTONIC) - begun) / 1e9, deliveries, bytes_in);
    fflush(stdout);
}

static void measure(void)
{
    uint64_t fanout = (uint64_t)((set.sockets - set.stalled) / set.channels);
    uint64_t base = deliveries, already = published, begun = 0, ended = 0, last = 0, last_change = 0, end_of_silence;
    uint64_t cpu = 0, own = 0, before = 0, bytes = 0, frames = 0, sent = 0;
    uint64_t start = clock_ns(CLOCK_MONOTONIC);
    uint64_t warm = start + (uint64_t)(set.warmup * 1e9), stop = warm + (uint64_t)(set.seconds * 1e9);
    bool quiet = false;
    if (set.rate > 0) {
        uint64_t every = (uint64_t)(1e9 / set.rate);
        struct itimerspec times = {.it_interval = {(time_t)(every / 1000000000u), (long)(every % 1000000000u)}};
        times.it_value = times.it_interval;
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        timerfd_settime(timer_fd, 0, &times, NULL);
        watch(timer_fd, (struct conn *)&timer_fd);
    }
    while (!quiet) {
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        if (begun == 0 && now >= warm) {
            begun = now;
            memset(histogram, 0, sizeof histogram);
            counted = longest = 0;
            cpu = server_cpu_ns(), own = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
            before = deliveries, bytes = bytes_in, frames = frames_in, sent = published;
        }
        if (now >= stop)
            break;
        uint64_t completed = (deliveries - base) / fanout, on_the_way = published - already - completed;
        if (set.rate > 0)
            publish(due), due = 0;
        else if (on_the_way < (uint64_t)set.window)
            publish((uint64_t)set.window - on_the_way);
        turn(10);
        if (deliveries != last)
            last = deliveries, last_change = now;
        quiet = now > SILENCE_S * 1000000000ull + (last_change ? last_change : start);
    }
    ended = clock_ns(CLOCK_MONOTONIC);
    cpu = server_cpu_ns() - cpu, own = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own;
    before = deliveries - before, bytes = bytes_in - bytes, frames = frames_in - frames, sent = published - sent;
    uint64_t p50 = percentile(0.5), p99 = percentile(0.99), most = longest;
    /* What is still on the way belongs to the check that nothing was lost, not to the figures. */
    end_of_silence = ended + 5000000000ull;
    while (deliveries - base < (published - already) * fanout && clock_ns(CLOCK_MONOTONIC) < end_of_silence)
        turn(10);
    printf("{\"deliveries\": %lu, \"seconds\": %.6f, \"server_cpu\": %.6f, \"client_cpu\": %.6f, \"events\": %lu, "
           "\"frames\": %lu, \"bytes\": %lu, \"p50_us\": %lu, \"p99_us\": %lu, \"max_us\": %lu, \"lost\": %ld, "
           "\"closed\": %d, \"without\": %d, \"all_deliveries\": %lu, \"silent\": %s}\n",
           before, (double)(ended - begun) / 1e9, (double)cpu / 1e9, (double)own / 1e9, sent, frames, bytes, p50, p99,
           most, (long)((published - already) * fanout - (deliveries - base)), gone, without, deliveries, quiet ? "true" : "false");
    fflush(stdout);
    if (set.rate > 0)
        close(timer_fd);
}

/* Whether we are told to go on; all stay connected meanwhile. */
static bool again(void)
{
    told = false;
    watch(0, (struct conn *)&told);
    while (!told)
        turn(1000);
    if (!left)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, 0, NULL);
    return !left;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", 1, 0, 'p'},     {"sockets", 1, 0, 'n'},  {"channels", 1, 0, 'c'}, {"path", 1, 0, 'u'},
        {"header", 1, 0, 'H'},   {"tokens", 1, 0, 't'},   {"say", 1, 0, 's'},      {"wait", 1, 0, 'w'},
        {"publish", 1, 0, 'P'},  {"hello", 1, 0, 'h'},    {"event", 1, 0, 'e'},    {"window", 1, 0, 'k'},
        {"rate", 1, 0, 'r'},     {"warmup", 1, 0, 'W'},   {"seconds", 1, 0, 'S'},  {"pid", 1, 0, 'i'},
        {"stalled", 1, 0, 'x'},  {"at-once", 1, 0, 'o'},  {"patience", 1, 0, 'q'}, {"contains", 1, 0, 'C'},
        {0},
    };
    const char *hello = NULL, *event = NULL;
    size_t size;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'p': set.port = atoi(optarg); break;
        case 'n': set.sockets = atoi(optarg); break;
        case 'c': set.channels = atoi(optarg); break;
        case 'u': set.path = optarg; break;
        case 'H': set.header = optarg; break;
        case 'P': set.publish_port = atoi(optarg); break;
        case 'h': hello = optarg; break;
        case 'e': event = optarg; break;
        case 'k': set.window = atoi(optarg); break;
        case 'r': set.rate = atof(optarg); break;
        case 'W': set.warmup = atof(optarg); break;
        case 'S': set.seconds = atof(optarg); break;
        case 'i': set.pid = atoi(optarg); break;
        case 'x': set.stalled = atoi(optarg); break;
        case 'o': set.at_once = atoi(optarg); break;
        case 'q': set.patience = atof(optarg); break;
        case 'C': set.contains = optarg; break;
        case 's':
        case 'w':
            if (step_count == MAX_STEPS)
                die("too many steps");
            steps[step_count++] = (struct step){option == 'w', optarg};
            break;
        case 't':
            tokens = must(calloc(MAX_SOCKETS, sizeof *tokens));
            char *line = strtok(read_file(optarg, &size), "\n");
            for (int i = 0; i < MAX_SOCKETS && line != NULL; i++, line = strtok(NULL, "\n"))
                tokens[i] = line;
            break;
        default: return 2;
        }
    }
    if (set.port <= 0 || set.sockets < 1 || set.sockets > MAX_SOCKETS || set.channels < 1 ||
        set.channels > set.sockets - set.stalled || (tokens && tokens[set.sockets - 1] == NULL)) {
        fprintf(stderr, "load: see the head of load.c\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    conns = must(calloc((size_t)set.sockets, sizeof *conns));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connect_all();
    if (ready < set.sockets)
        return 1;
    if (event)
        connect_publisher(hello, event);
    if (!again())
        return 0;
    for (int i = set.sockets - set.stalled; i < set.sockets; i++)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, conns[i].fd, NULL);
    do
        if (event)
            measure();
    while (again());
    return 0;
}
