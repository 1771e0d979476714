/* A client of container.ipc in C, written from docs/reference/SPEC.md alone, with no library.
 *
 * It makes a call, a call that fails, a call with a descriptor, holds a scope, reads a stream with
 * credit, and says goodbye. What it learns it prints, one line each; what it does not expect ends it
 * with status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum kind { HELLO = 1, CALL, REPLY, ERROR, CANCEL, OPENED, CLOSE, ITEM, CREDIT, END, STOP, PING, PONG, GOODBYE };
enum { FROM_CALLEE = 1, SCOPE = 2 };
#define MAGIC "ctr-ipc\n"

static int sock;

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

/* --- MessagePack, as much as the protocol needs ------------------------------------------------ */

struct buffer { uint8_t data[4096]; size_t size; };

static void put(struct buffer *b, const void *data, size_t size) {
    if (b->size + size > sizeof b->data) fail("a message is too large");
    memcpy(b->data + b->size, data, size);
    b->size += size;
}
static void byte(struct buffer *b, uint8_t value) { put(b, &value, 1); }
static void array(struct buffer *b, int count) { byte(b, 0x90 | count); }
static void map(struct buffer *b, int count) { byte(b, 0x80 | count); }
static void nil(struct buffer *b) { byte(b, 0xc0); }
static void boolean(struct buffer *b, int value) { byte(b, value ? 0xc3 : 0xc2); }
static void integer(struct buffer *b, uint64_t value) {
    byte(b, 0xcf);
    for (int shift = 56; shift >= 0; shift -= 8) byte(b, value >> shift);
}
static void text(struct buffer *b, const char *value) {
    size_t size = strlen(value);
    byte(b, 0xd9);
    byte(b, size);
    put(b, value, size);
}
/* An extension whose content is one small integer: a descriptor (2) or a channel (4), by index. */
static void indexed(struct buffer *b, int code, int index) {
    byte(b, 0xd4);
    byte(b, code);
    byte(b, index);
}

struct reader { const uint8_t *at, *end; };

static uint64_t number(struct reader *r, int bytes) {
    uint64_t value = 0;
    if (r->end - r->at < bytes) fail("a message is cut off");
    while (bytes--) value = value << 8 | *r->at++;
    return value;
}
/* Take a head of type t ('a' array, 'm' map, 's' text, 'i' integer, 'n' nil, 'x' other); its size or value. */
static char head(struct reader *r, uint64_t *value) {
    uint8_t code = number(r, 1);
    *value = 0;
    if (code < 0x80) return *value = code, 'i';
    if (code < 0x90) return *value = code & 15, 'm';
    if (code < 0xa0) return *value = code & 15, 'a';
    if (code < 0xc0) return *value = code & 31, 's';
    switch (code) {
    case 0xc0: return 'n';
    case 0xc2: case 0xc3: return *value = code & 1, 'x';
    case 0xc4: case 0xd9: return *value = number(r, 1), code == 0xd9 ? 's' : 'b';
    case 0xc5: case 0xda: return *value = number(r, 2), code == 0xda ? 's' : 'b';
    case 0xc6: case 0xdb: return *value = number(r, 4), code == 0xdb ? 's' : 'b';
    case 0xc7: return *value = number(r, 1) + 1, 'b';
    case 0xca: return number(r, 4), 'x';
    case 0xcb: return number(r, 8), 'x';
    case 0xcc: return *value = number(r, 1), 'i';
    case 0xcd: return *value = number(r, 2), 'i';
    case 0xce: return *value = number(r, 4), 'i';
    case 0xcf: return *value = number(r, 8), 'i';
    case 0xd0: return *value = (int8_t)number(r, 1), 'i';
    case 0xd1: return *value = (int16_t)number(r, 2), 'i';
    case 0xd2: return *value = (int32_t)number(r, 4), 'i';
    case 0xd3: return *value = number(r, 8), 'i';
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return *value = (1 << (code - 0xd4)) + 1, 'b';
    case 0xdc: return *value = number(r, 2), 'a';
    case 0xdd: return *value = number(r, 4), 'a';
    case 0xde: return *value = number(r, 2), 'm';
    case 0xdf: return *value = number(r, 4), 'm';
    default: fail("unknown MessagePack code %02x", code);
    }
}
static void skip(struct reader *r) {
    uint64_t value;
    switch (head(r, &value)) {
    case 's': case 'b': number(r, 0); r->at += value; break;
    case 'm': value *= 2; /* fall through */
    case 'a': while (value--) skip(r); break;
    }
}
static uint64_t expect(struct reader *r, char type) {
    uint64_t value;
    char found = head(r, &value);
    if (found != type) fail("expected a MessagePack %c, found %c", type, found);
    return value;
}
static const char *string(struct reader *r) {
    static char texts[4][256];
    static int next;
    uint64_t size = expect(r, 's');
    char *out = texts[next++ % 4];
    if (size > 255 || (uint64_t)(r->end - r->at) < size) fail("a text is too long");
    memcpy(out, r->at, size);
    out[size] = 0;
    r->at += size;
    return out;
}
/* Go to the value of a key of a map; false if it is not there. */
static int find(struct reader *r, const char *key) {
    for (uint64_t count = expect(r, 'm'); count--; skip(r))
        if (strcmp(string(r), key) == 0) return 1;
    return 0;
}

/* --- frames ----------------------------------------------------------------------------------- */

struct frame { uint8_t kind, flags; uint16_t descriptors; uint64_t id; struct reader payload; };

static void transmit(int kind, int flags, uint64_t id, const struct buffer *body, int descriptor) {
    uint8_t data[16 + sizeof body->data];
    uint32_t length = body ? body->size : 0;
    uint16_t count = descriptor >= 0;
    memcpy(data, &length, 4);
    data[4] = kind;
    data[5] = flags;
    memcpy(data + 6, &count, 2);
    memcpy(data + 8, &id, 8);
    if (length) memcpy(data + 16, body->data, length);
    for (size_t sent = 0, size = 16 + length; sent < size;) {
        char control[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec part = {data + sent, size - sent};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (descriptor >= 0 && sent == 0) { /* with the first byte, and with no other */
            message.msg_control = control;
            message.msg_controllen = sizeof control;
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
        }
        ssize_t taken = sendmsg(sock, &message, MSG_NOSIGNAL);
        if (taken < 0) fail("sendmsg: %s", strerror(errno));
        sent += taken;
    }
}

static int queue[253], queued; /* descriptors that came and that no frame has claimed */
static uid_t sender;

static void exactly(uint8_t *data, size_t size) {
    while (size) {
        char control[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(253 * sizeof(int))];
        struct iovec part = {data, size};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t count = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
        if (count <= 0) fail("the connection ended");
        if (message.msg_flags & MSG_CTRUNC) fail("the kernel could not deliver all descriptors");
        int known = 0;
        for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
            if (header->cmsg_type == SCM_CREDENTIALS) {
                struct ucred who;
                memcpy(&who, CMSG_DATA(header), sizeof who);
                known = who.pid != 0;
                sender = who.uid;
            } else if (header->cmsg_type == SCM_RIGHTS) {
                int here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                if (queued + here > 253) fail("too many descriptors");
                memcpy(queue + queued, CMSG_DATA(header), here * sizeof(int));
                queued += here;
            }
        }
        if (!known || (sender != 0 && sender != geteuid())) fail("a message of a stranger");
        data += count;
        size -= count;
    }
}

static struct frame receive(void) {
    static uint8_t payload[65536];
    uint8_t header[16];
    uint32_t length;
    struct frame frame;
    for (;;) {
        exactly(header, 16);
        memcpy(&length, header, 4);
        frame.kind = header[4];
        frame.flags = header[5];
        memcpy(&frame.descriptors, header + 6, 2);
        memcpy(&frame.id, header + 8, 8);
        if (length > sizeof payload) fail("a frame of %u bytes is more than was announced", length);
        exactly(payload, length);
        if (frame.descriptors > queued) fail("fewer descriptors came than the frame said");
        frame.payload = (struct reader){payload, payload + length};
        if (frame.kind != PING) return frame;
        transmit(PONG, 0, frame.id, NULL, -1);
    }
}

static int claim(void) {
    int descriptor = queue[0];
    memmove(queue, queue + 1, --queued * sizeof(int));
    return descriptor;
}

static struct frame answer(int kind, uint64_t id) {
    struct frame frame = receive();
    if (frame.kind != kind || frame.id != id) fail("expected kind %d of %d, found %d of %d", kind, (int)id, frame.kind, (int)frame.id);
    return frame;
}

/* --- the conversation ------------------------------------------------------------------------- */

static uint64_t last;

/* Begin a call: route, 10 s, a grace of 5 s, no trace; the arguments follow. */
static struct buffer begin(const char *route, int elements) {
    struct buffer body = {.size = 0};
    array(&body, elements);
    text(&body, route);
    integer(&body, 10000000000ULL);
    integer(&body, 5000000000ULL);
    nil(&body);
    return body;
}

static uint64_t call(const struct buffer *body, int flags, int descriptor) {
    transmit(CALL, flags, ++last, body, descriptor);
    return last;
}

static void greet(const char *name) {
    struct buffer body = begin("stranger/greet", 5);
    map(&body, 1);
    text(&body, "name");
    text(&body, name);
    uint64_t id = call(&body, 0, -1);
    struct frame frame = receive();
    expect(&frame.payload, 'a');
    if (frame.kind == REPLY && frame.id == id) {
        printf("reply: %s\n", string(&frame.payload));
    } else if (frame.kind == ERROR && frame.id == id) {
        if (expect(&frame.payload, 'i') != 0) fail("it was not ended by itself");
        struct reader error = frame.payload;
        if (!find(&error, "code")) fail("an error without a code");
        printf("error: %s", string(&error));
        error = frame.payload;
        if (find(&error, "message")) printf(": %s", string(&error));
        printf("\n");
    } else {
        fail("expected the terminal of a call");
    }
}

static void pass_descriptor(void) {
    int ends[2];
    if (pipe(ends) < 0) fail("pipe: %s", strerror(errno));
    struct buffer body = begin("stranger/write", 5);
    map(&body, 1);
    text(&body, "to");
    indexed(&body, 2, 0);
    uint64_t id = call(&body, 0, ends[1]);
    close(ends[1]);
    answer(REPLY, id);
    char found[64] = {0};
    if (read(ends[0], found, sizeof found - 1) < 0) fail("read: %s", strerror(errno));
    printf("written to the descriptor: %s\n", found);
    close(ends[0]);

    body = begin("stranger/open", 5);
    map(&body, 0);
    id = call(&body, 0, -1);
    struct frame frame = answer(REPLY, id);
    if (frame.descriptors != 1) fail("a reply without its descriptor");
    int file = claim();
    ssize_t size = pread(file, found, sizeof found - 1, 0);
    if (size < 0) fail("pread: %s", strerror(errno));
    found[size] = 0;
    printf("read from the descriptor: %s\n", found);
    close(file);
}

static void close_scope(uint64_t id, int failed) {
    struct buffer body = {.size = 0};
    array(&body, 2);
    boolean(&body, failed);
    integer(&body, failed ? 5000000000ULL : 0);
    transmit(CLOSE, 0, id, &body, -1);
}

static void hold(void) {
    struct buffer body = begin("stranger/lease", 5);
    map(&body, 1);
    text(&body, "key");
    text(&body, "c");
    uint64_t id = call(&body, SCOPE, -1);
    struct frame frame = answer(OPENED, id);
    expect(&frame.payload, 'a');
    printf("held: %s\n", string(&frame.payload));
    greet("somebody, while the scope is held");
    close_scope(id, 0);
    answer(REPLY, id);
    printf("left: clean-up has ended\n");
}

static void credit(uint64_t id, uint64_t channel, uint64_t items, uint64_t bytes) {
    struct buffer body = {.size = 0};
    array(&body, 3);
    integer(&body, channel);
    integer(&body, items);
    integer(&body, bytes);
    transmit(CREDIT, 0, id, &body, -1);
}

static void read_stream(void) {
    struct buffer body = begin("stranger/ticks", 5);
    map(&body, 1);
    text(&body, "count");
    integer(&body, 10);
    uint64_t id = call(&body, SCOPE, -1);
    struct frame frame = answer(OPENED, id);
    if (expect(&frame.payload, 'a') != 2) fail("an opening that gives nothing away");
    skip(&frame.payload); /* the value: gift 0 */
    if (expect(&frame.payload, 'a') != 1) fail("expected one gift");
    expect(&frame.payload, 'a');
    uint64_t channel = expect(&frame.payload, 'i');
    if (channel % 2 != 0) fail("the callee gives even numbers out");
    if (expect(&frame.payload, 'i') != 0) fail("expected the reading end");
    uint64_t total = 0, items = 0, window = 3;
    credit(id, channel, window, 1000);
    for (;;) {
        frame = receive();
        if (frame.id != id || frame.flags != FROM_CALLEE) fail("a frame of something else");
        expect(&frame.payload, 'a');
        if (expect(&frame.payload, 'i') != channel) fail("a frame of another channel");
        if (frame.kind == END) break;
        if (frame.kind != ITEM) fail("expected an item");
        if (window-- == 0) fail("an item without credit");
        total += expect(&frame.payload, 'i');
        items++;
        if (window == 1) {
            credit(id, channel, 2, 20);
            window += 2;
        }
    }
    printf("%d items, %d in total\n", (int)items, (int)total);
    close_scope(id, 0);
    answer(REPLY, id);
}

static void write_channel(void) {
    /* A call that reads a channel which this side made: channel 1, its reading end is given away. */
    struct buffer body = begin("stranger/total", 6);
    map(&body, 1);
    text(&body, "numbers");
    indexed(&body, 4, 0);
    array(&body, 1);
    array(&body, 4);
    integer(&body, 1);
    integer(&body, 0);
    integer(&body, 8);
    integer(&body, 4096);
    uint64_t id = call(&body, 0, -1);
    uint64_t window = 0;
    for (uint64_t value = 1; value <= 20; value++) {
        while (window == 0) {
            struct frame frame = answer(CREDIT, id);
            expect(&frame.payload, 'a');
            if (expect(&frame.payload, 'i') != 1) fail("credit for another channel");
            window = expect(&frame.payload, 'i');
        }
        struct buffer item = {.size = 0};
        array(&item, 2);
        integer(&item, 1);
        byte(&item, value);
        transmit(ITEM, 0, id, &item, -1);
        window--;
    }
    struct buffer end = {.size = 0};
    array(&end, 2);
    integer(&end, 1);
    nil(&end);
    transmit(END, 0, id, &end, -1);
    struct frame frame;
    do frame = receive();
    while (frame.kind == CREDIT);
    if (frame.kind != REPLY || frame.id != id) fail("expected the reply");
    expect(&frame.payload, 'a');
    printf("the other side counted %d\n", (int)expect(&frame.payload, 'i'));
}

int main(int count, char **arguments) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int on = 1;
    uint64_t magic;
    if (count != 2) fail("usage: client SOCKET");
    strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
    sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0) fail("SO_PASSCRED: %s", strerror(errno));
    if (connect(sock, (struct sockaddr *)&address, sizeof address) < 0) fail("connect: %s", strerror(errno));

    struct buffer hello = {.size = 0};
    array(&hello, 6);
    integer(&hello, 1);
    integer(&hello, 1);
    map(&hello, 4);
    text(&hello, "frame_bytes");
    integer(&hello, 65536);
    text(&hello, "frame_descriptors");
    integer(&hello, 4);
    text(&hello, "in_flight");
    integer(&hello, 1);
    text(&hello, "channels");
    integer(&hello, 4);
    map(&hello, 1);
    text(&hello, "stranger");
    array(&hello, 2);
    integer(&hello, 1);
    text(&hello, "");
    text(&hello, "client.c");
    text(&hello, "0");
    memcpy(&magic, MAGIC, 8);
    transmit(HELLO, 0, magic, &hello, -1);
    struct frame frame = answer(HELLO, magic);
    expect(&frame.payload, 'a');
    if (expect(&frame.payload, 'i') > 1) fail("the server is too new");
    skip(&frame.payload);
    skip(&frame.payload);
    if (!find(&frame.payload, "stranger")) fail("the server does not speak our contract");
    printf("hello\n");

    greet("c");
    greet("nobody");
    pass_descriptor();
    hold();
    read_stream();
    write_channel();

    struct buffer goodbye = {.size = 0};
    array(&goodbye, 2);
    integer(&goodbye, 0);
    integer(&goodbye, 0);
    transmit(GOODBYE, 0, 0, &goodbye, -1);
    close(sock);
    printf("goodbye\n");
    return 0;
}
