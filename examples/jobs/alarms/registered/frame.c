/* A codec: what an old instrument sends, 8 bytes big-endian (number, tenths of a
   degree, urgency), becomes JSON. Each item comes as its length and its bytes;
   each answer is a 0, the length and the bytes of what became of it, or a 1 and
   why nothing can. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static uint32_t number(const unsigned char *b, int n) {
    uint32_t v = 0;
    while (n--) v = v << 8 | *b++;
    return v;
}

int main(void) {
    unsigned char head[5], item[8];
    char text[100];
    while (fread(head, 4, 1, stdin)) {
        uint32_t length = number(head, 4);
        if (length == 8 && fread(item, 8, 1, stdin))
            sprintf(text, "{\"alarm\": %u, \"celsius\": %.1f, \"urgency\": %u}", number(item, 4), (int16_t)number(item + 4, 2) / 10.0, number(item + 6, 2));
        else
            sprintf(text, "%u bytes are no frame of 8", length);
        head[0] = length != 8;
        head[1] = head[2] = head[3] = 0, head[4] = strlen(text);
        fwrite(head, 5, 1, stdout), fwrite(text, head[4], 1, stdout), fflush(stdout);
        if (length != 8) return 1;
    }
    return 0;
}
