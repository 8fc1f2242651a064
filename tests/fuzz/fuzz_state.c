// State streams: what chips load must leave them usable, whatever it says. Input: the chip (1 byte), then either a whole
// stream, or (first bit of the second byte) patches of a valid one.
#include "tests/fuzz/board.h"
#include "tests/fuzz/fuzz.h"

static struct board *board;

static void save(const struct device *d, struct stream *s)
{
    stream_init_save(s);
    d->ops->state(d->opaque, s);
    claim(!s->error, "%s does not save: %d", d->ops->name, s->error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cursor c = {data, size};
    struct stream valid, load, again;

    if (!board)
        board = board_create();
    board_reset(board);
    const struct device *d = &board->devices[take(&c, 1) % board->device_count];
    save(d, &valid);
    if (take(&c, 1) & 1) {
        while (c.left) {
            size_t at = (size_t)take(&c, 2);
            valid.data[at % valid.size] = (uint8_t)take(&c, 1);
        }
        stream_init_load(&load, valid.data, valid.size);
    } else {
        stream_init_load(&load, c.p, c.left);
    }
    d->ops->state(d->opaque, &load);
    // The chip goes on, with whatever it has now.
    board_touch(board, true);
    board_advance(board, 100000000, 5000);
    board_touch(board, false);
    // What it saves now, it loads.
    save(d, &again);
    stream_init_load(&load, again.data, again.size);
    d->ops->state(d->opaque, &load);
    claim(!load.error && load.position == load.size, "%s does not load what it saved: %d", d->ops->name, load.error);
    stream_free(&again);
    stream_free(&valid);
    return 0;
}
