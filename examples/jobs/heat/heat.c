/* Heat on a square plate: its upper edge is hot, the other edges are cold.
 *
 * Each process works on one tile and swaps the rim with the neighbours that it
 * has. Even where its tile lies is learnt through the ports: a count runs along
 * each row and column and back. The tiles are then passed west and north to the
 * corner, which writes the picture.
 */
#include <mvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *why) {
    fprintf(stderr, "heat: %s: %s\n", what, why);
    exit(1);
}

static void *allocate(size_t size) {
    void *p = calloc(1, size);
    if (!p) fail("memory", "none left");
    return p;
}

static void put(mvm_port *port, const void *item, size_t size) {
    int code = mvm_enqueue(port, item, size);
    if (code < 0) fail("enqueue", mvm_strerror(code));
}

static void get(mvm_port *port, void *buffer, size_t size) {
    ssize_t n = mvm_dequeue(port, buffer, size);
    if (n < 0) fail("dequeue", mvm_strerror((int)n));
    if ((size_t)n != size) fail("dequeue", "an item of another size than expected");
}

/* Where this process stands on a line of processes, and how long the line is. */
static void locate(mvm_port *before, mvm_port *after, int *place, int *length) {
    *place = 0;
    if (before) get(before, place, sizeof *place);
    int next = *place + 1;
    if (after) {
        put(after, &next, sizeof next);
        get(after, length, sizeof *length);
    } else {
        *length = next;
    }
    if (before) put(before, length, sizeof *length);
}

/* The first point of part number `place` when `size` points are cut into `parts`. */
static int cut(int size, int parts, int place) { return (int)((long)size * place / parts); }

/* A PNG without compression: enough for anybody to look at. */
static uint32_t crc(uint32_t c, const uint8_t *p, size_t n) {
    c = ~c;
    while (n--) {
        c ^= *p++;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    }
    return ~c;
}

static void big_endian(uint8_t *p, uint32_t v) {
    p[0] = v >> 24, p[1] = v >> 16, p[2] = v >> 8, p[3] = v;
}

static void chunk(FILE *out, const char *type, const uint8_t *data, uint32_t n) {
    uint8_t *all = allocate(n + 12);
    big_endian(all, n);
    memcpy(all + 4, type, 4);
    memcpy(all + 8, data, n);
    big_endian(all + 8 + n, crc(0, all + 4, n + 4));
    if (fwrite(all, 1, n + 12, out) != n + 12) fail("heat.png", "cannot be written");
    free(all);
}

static void write_png(const char *path, const double *heat, int size) {
    size_t row = 1 + 3 * (size_t)size, raw = row * size;
    uint8_t *pixels = allocate(raw), *packed = allocate(raw + raw / 65535 * 5 + 16), header[13] = {0};
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            double t = heat[y * size + x] / 100; /* black, red, yellow, white */
            uint8_t *p = pixels + y * row + 1 + 3 * x;
            for (int c = 0; c < 3; c++) {
                double v = 3 * t - c;
                p[c] = v <= 0 ? 0 : v >= 1 ? 255 : (uint8_t)(255 * v);
            }
        }
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < raw; i++) a = (a + pixels[i]) % 65521, b = (b + a) % 65521;
    uint8_t *p = packed;
    *p++ = 0x78, *p++ = 0x01;
    for (size_t at = 0; at < raw;) {
        size_t n = raw - at < 65535 ? raw - at : 65535;
        *p++ = at + n == raw, *p++ = n & 255, *p++ = n >> 8, *p++ = ~n & 255, *p++ = (~n >> 8) & 255;
        memcpy(p, pixels + at, n);
        p += n, at += n;
    }
    big_endian(p, b << 16 | a);
    p += 4;
    FILE *out = fopen(path, "wb");
    if (!out) fail(path, "cannot be written");
    fwrite("\x89PNG\r\n\x1a\n", 1, 8, out);
    big_endian(header, size), big_endian(header + 4, size);
    header[8] = 8, header[9] = 2;
    chunk(out, "IHDR", header, 13);
    chunk(out, "IDAT", packed, (uint32_t)(p - packed));
    chunk(out, "IEND", header, 0);
    if (fclose(out)) fail(path, "cannot be written");
}

int main(int argc, char **argv) {
    if (argc != 3) fail("usage", "heat SIZE STEPS");
    int size = atoi(argv[1]), steps = atoi(argv[2]);
    mvm_port *west = mvm_open("west"), *east = mvm_open("east");
    mvm_port *north = mvm_open("north"), *south = mvm_open("south");
    int column, columns, row, rows;
    locate(west, east, &column, &columns);
    locate(north, south, &row, &rows);
    if (columns > size || rows > size) fail("size", "is smaller than the mesh");
    int x0 = cut(size, columns, column), w = cut(size, columns, column + 1) - x0;
    int y0 = cut(size, rows, row), h = cut(size, rows, row + 1) - y0;

    /* A tile with a rim one point wide; a rim without a neighbour is the plate's edge. */
    int stride = w + 2;
    double *now = allocate(sizeof *now * stride * (h + 2)), *then = allocate(sizeof *then * stride * (h + 2));
    double *side = allocate(sizeof *side * h);
    if (!north)
        for (int x = 0; x < stride; x++) now[x] = then[x] = 100;
    for (int s = 0; s < steps; s++) {
        if (north) put(north, now + stride + 1, w * sizeof *now);
        if (south) put(south, now + h * stride + 1, w * sizeof *now);
        if (west) {
            for (int y = 0; y < h; y++) side[y] = now[(y + 1) * stride + 1];
            put(west, side, h * sizeof *side);
        }
        if (east) {
            for (int y = 0; y < h; y++) side[y] = now[(y + 1) * stride + w];
            put(east, side, h * sizeof *side);
        }
        if (north) get(north, now + 1, w * sizeof *now);
        if (south) get(south, now + (h + 1) * stride + 1, w * sizeof *now);
        if (west) {
            get(west, side, h * sizeof *side);
            for (int y = 0; y < h; y++) now[(y + 1) * stride] = side[y];
        }
        if (east) {
            get(east, side, h * sizeof *side);
            for (int y = 0; y < h; y++) now[(y + 1) * stride + w + 1] = side[y];
        }
        for (int y = 1; y <= h; y++)
            for (int x = 1; x <= w; x++) {
                int i = y * stride + x;
                then[i] = 0.25 * (now[i - stride] + now[i + stride] + now[i - 1] + now[i + 1]);
            }
        double *swap = now;
        now = then, then = swap;
    }

    /* Rows of the plate are put together from east to west, then from south to north. */
    int band_width = size - x0;
    double *band = allocate(sizeof *band * band_width * h);
    double *rest = allocate(sizeof *rest * band_width * h);
    if (east) get(east, rest, sizeof *rest * (band_width - w) * h);
    for (int y = 0; y < h; y++) {
        memcpy(band + y * band_width, now + (y + 1) * stride + 1, w * sizeof *band);
        memcpy(band + y * band_width + w, rest + y * (band_width - w), (band_width - w) * sizeof *band);
    }
    if (west) {
        put(west, band, sizeof *band * band_width * h);
        return 0;
    }
    double *plate = allocate(sizeof *plate * size * (size - y0));
    memcpy(plate, band, sizeof *plate * size * h);
    if (south) get(south, plate + (size_t)size * h, sizeof *plate * size * (size - y0 - h));
    if (north) {
        put(north, plate, sizeof *plate * size * (size - y0));
        return 0;
    }
    write_png("heat.png", plate, size);
    printf("plate of %d x %d points after %d steps on %d x %d tiles: %.6f degrees at its centre\n", size, size, steps,
           rows, columns, plate[(size_t)size / 2 * size + size / 2]);
    return 0;
}
