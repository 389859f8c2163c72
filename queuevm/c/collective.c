/* collective.c - patterns over all processes of a topology, on port names alone.
 *
 * It is included at the end of mvm.c, so that a program may compile that alone in,
 * and uses what mvm.h has. LAYOUT.md, section 8, has the bytes: programs in other
 * languages take part.
 *
 * All but mvm_alltoall go along a tree: the topology's own, or one that is laid
 * into a complete graph or a cube. What always holds: each call sends one item
 * over each edge and way that it uses, and takes all that was sent to it, so one
 * call's items never reach another; a number in each item shows where processes
 * make different calls. */

enum { SETUP, BARRIER, BROADCAST, REDUCE, GATHER, SCATTER, ALLTOALL, HEAD = 16 };

struct branch { /* a child, and the members below it and itself in the order in which they come */
    mvm_port *port;
    uint32_t *members;
    int count, number;
};

struct mvm_collective {
    int index, size;
    mvm_port *parent; /* NULL at the root */
    struct branch *branches;
    int children;
    mvm_port **peers; /* by index; NULL, but for a complete graph */
    mvm_port **dims;  /* NULL, but for a cube */
    int dimensions;
    uint32_t calls; /* so far */
    unsigned char *out, *in;
    size_t out_size, in_size;
};

static int grow(unsigned char **buffer, size_t *size, size_t need) {
    if (need <= *size) return MVM_OK;
    void *more = realloc(*buffer, need + need / 4);
    if (!more) return MVM_SYSTEM;
    *buffer = more;
    *size = need + need / 4;
    return MVM_OK;
}

/* Begins a message of n bytes after its head; c->out + HEAD is where they go. */
static int compose(mvm_collective *c, uint32_t call, size_t n) {
    int code = grow(&c->out, &c->out_size, HEAD + n);
    if (code) return code;
    uint32_t head[2] = {c->calls, call};
    uint64_t length = n;
    memcpy(c->out, head, sizeof head);
    memcpy(c->out + 8, &length, 8);
    return MVM_OK;
}

static int post(mvm_collective *c, mvm_port *port, uint32_t call, const void *data, size_t n) {
    int code = compose(c, call, n);
    if (code) return code;
    if (n) memcpy(c->out + HEAD, data, n);
    return mvm_enqueue(port, c->out, HEAD + n);
}

/* Takes a message; its bytes are at c->in + HEAD. exactly is their number, or -1. */
static ssize_t fetch(mvm_collective *c, mvm_port *port, uint32_t call, ssize_t exactly) {
    ssize_t length = mvm_next_length(port);
    if (length < 0) return length;
    int code = grow(&c->in, &c->in_size, (size_t)length + HEAD);
    if (code) return code;
    if ((length = mvm_dequeue(port, c->in, (size_t)length)) < 0) return length;
    uint32_t head[2];
    uint64_t n;
    memcpy(head, c->in, sizeof head);
    memcpy(&n, c->in + 8, 8);
    if (length < HEAD || head[0] != c->calls || head[1] != call || n != (uint64_t)length - HEAD || (exactly >= 0 && n != (uint64_t)exactly)) return MVM_MISUSE;
    return (ssize_t)n;
}

/* Sends the message in c->out to a neighbour and takes its own: whatever their
 * length, one of the two first sends and the other one first takes. */
static ssize_t swap_with(mvm_collective *c, mvm_port *port, uint32_t call, int first, ssize_t exactly) {
    uint64_t n;
    memcpy(&n, c->out + 8, 8);
    int code = mvm_try_enqueue(port, c->out, HEAD + n);
    int sent = code != MVM_AGAIN && code != MVM_TOO_BIG;
    if (!sent && first) code = mvm_enqueue(port, c->out, HEAD + n), sent = 1;
    if (sent && code) return code;
    ssize_t got = fetch(c, port, call, exactly);
    if (got >= 0 && !sent && (code = mvm_enqueue(port, c->out, HEAD + n))) return code;
    return got;
}

/* ---- who is where ---- */

/* The number behind a port's name that begins with prefix and word, -1 for none. */
static int numbered(const char *name, const char *prefix, const char *word) {
    size_t p = strlen(prefix), w = strlen(word);
    if (strncmp(name, prefix, p) || strncmp(name + p, word, w)) return -1;
    const char *digits = name + p + w;
    if (!*digits || strlen(digits) > 7 || strspn(digits, "0123456789") != strlen(digits)) return -1;
    return atoi(digits);
}

static int named(const char *name, const char *prefix, const char *word) {
    size_t p = strlen(prefix);
    return !strncmp(name, prefix, p) && !strcmp(name + p, word);
}

static int add_branch(mvm_collective *c, mvm_port *port, int number) {
    struct branch *more = realloc(c->branches, (size_t)(c->children + 1) * sizeof *more);
    if (!more) return MVM_SYSTEM;
    c->branches = more;
    int k = c->children++;
    for (; k > 0 && more[k - 1].number > number; k--) more[k] = more[k - 1];
    more[k] = (struct branch){.port = port, .number = number};
    return MVM_OK;
}

/* Numbers the members of a tree level by level, as its topology does, and learns
 * who is below each child: how many there are on each level goes up, where each
 * level begins comes down, and who is where goes up again. */
static int survey(mvm_collective *c) {
    int code = MVM_OK, levels = 1;
    ssize_t got;
    uint32_t **below = calloc((size_t)c->children + 1, sizeof *below); /* by child: members on each level */
    int *depth = calloc((size_t)c->children + 1, sizeof *depth);
    uint32_t *sum = NULL, *start = NULL;
    if (!below || !depth) code = MVM_SYSTEM;
    for (int k = 0; k < c->children && !code; k++) {
        if ((got = fetch(c, c->branches[k].port, SETUP, -1)) < 0) { code = (int)got; break; }
        depth[k] = (int)(got / 4);
        if (depth[k] < 1 || got % 4 || !(below[k] = malloc((size_t)got))) { code = depth[k] < 1 || got % 4 ? MVM_MISUSE : MVM_SYSTEM; break; }
        memcpy(below[k], c->in + HEAD, (size_t)got);
        if (depth[k] + 1 > levels) levels = depth[k] + 1;
    }
    if (!code && (!(sum = calloc((size_t)levels + 1, sizeof *sum)) || !(start = calloc((size_t)levels + 1, sizeof *start)))) code = MVM_SYSTEM;
    if (!code) {
        sum[0] = 1;
        for (int k = 0; k < c->children; k++)
            for (int d = 0; d < depth[k]; d++) sum[d + 1] += below[k][d];
        if (c->parent) {
            code = post(c, c->parent, SETUP, sum, (size_t)levels * 4);
            got = code ? code : fetch(c, c->parent, SETUP, (levels + 1) * 4);
            if (got < 0) code = (int)got;
            else memcpy(start, c->in + HEAD, (size_t)got); /* the size, then where each level begins */
        } else {
            for (int d = 0; d < levels; d++) start[0] += sum[d];
            for (int d = 1; d < levels; d++) start[d + 1] = start[d] + sum[d - 1];
        }
    }
    if (!code) {
        c->size = (int)start[0];
        c->index = (int)start[1];
        memmove(start, start + 1, (size_t)levels * 4); /* own level first */
    }
    uint32_t size = (uint32_t)c->size;
    for (int k = 0; k < c->children && !code; k++) {
        if ((code = compose(c, SETUP, ((size_t)depth[k] + 1) * 4))) break;
        memcpy(c->out + HEAD, &size, 4);
        memcpy(c->out + HEAD + 4, start + 1, (size_t)depth[k] * 4);
        code = mvm_enqueue(c->branches[k].port, c->out, HEAD + ((size_t)depth[k] + 1) * 4);
        for (int d = 0; d < depth[k]; d++) start[d + 1] += below[k][d];
    }
    uint32_t *all = code ? NULL : malloc((size_t)c->size * 4);
    if (!code && !all) code = MVM_SYSTEM;
    int n = 0;
    if (!code) all[n++] = (uint32_t)c->index;
    for (int k = 0; k < c->children && !code; k++) {
        struct branch *b = &c->branches[k];
        if ((got = fetch(c, b->port, SETUP, -1)) < 0) { code = (int)got; break; }
        b->count = (int)(got / 4);
        if (got % 4 || b->count < 1 || b->count > c->size - n) { code = MVM_MISUSE; break; }
        if (!(b->members = malloc((size_t)got))) { code = MVM_SYSTEM; break; }
        memcpy(b->members, c->in + HEAD, (size_t)got);
        for (int j = 0; j < b->count; j++)
            if ((all[n++] = b->members[j]) >= (uint32_t)c->size) code = MVM_MISUSE;
    }
    if (!code && c->parent) code = post(c, c->parent, SETUP, all, (size_t)n * 4);
    for (int k = 0; below && k < c->children; k++) free(below[k]);
    free(below), free(depth), free(sum), free(start), free(all);
    return code;
}

/* Lists who is at and below a member of the tree that is laid into a complete
 * graph (binary) or a cube (binomial); gives how many. */
static int laid(const mvm_collective *c, int member, uint32_t *list) {
    int n = 0;
    list[n++] = (uint32_t)member;
    if (c->dims) {
        for (int d = 0; d < c->dimensions && !(member >> d & 1); d++) n += laid(c, member | 1 << d, list + n);
    } else {
        for (int child = 2 * member + 1; child <= 2 * member + 2 && child < c->size; child++) n += laid(c, child, list + n);
    }
    return n;
}

static int lay_branch(mvm_collective *c, int member, mvm_port *port) {
    int code = add_branch(c, port, member);
    if (code) return code;
    struct branch *b = &c->branches[c->children - 1];
    if (!(b->members = malloc((size_t)c->size * 4))) return MVM_SYSTEM;
    b->count = laid(c, member, b->members);
    return MVM_OK;
}

static int lay_tree(mvm_collective *c) {
    int code = MVM_OK;
    if (c->dims) {
        int d = 0;
        for (; d < c->dimensions && !(c->index >> d & 1) && !code; d++) code = lay_branch(c, c->index | 1 << d, c->dims[d]);
        if (c->index) c->parent = c->dims[d];
    } else {
        for (int child = 2 * c->index + 1; child <= 2 * c->index + 2 && child < c->size && !code; child++) code = lay_branch(c, child, c->peers[child]);
        if (c->index) c->parent = c->peers[(c->index - 1) / 2];
    }
    return code;
}

/* Puts ports that are numbered from 0 in their places; gap is the one that may
 * be missing. NULL when there is another gap. */
static mvm_port **in_order(char **names, const char *prefix, const char *word, const char *other, int *count, int *gap) {
    int most = -1, found = 0;
    for (char **name = names; *name; name++) {
        int k = numbered(*name, prefix, word);
        if (k < 0 && other) k = numbered(*name, prefix, other);
        if (k >= 0) found++;
        if (k > most) most = k;
    }
    *count = most + 1;
    if (gap && found == most + 1) *count = found + 1, *gap = found; /* the last one has only lower peers */
    if (!found || *count != found + (gap != NULL)) return NULL;
    mvm_port **ports = calloc((size_t)*count, sizeof *ports);
    for (char **name = names; ports && *name; name++) {
        int k = numbered(*name, prefix, word);
        if (k < 0 && other) k = numbered(*name, prefix, other);
        if (k >= 0) ports[k] = mvm_open(*name);
    }
    int missing = 0;
    for (int k = 0; ports && k < *count; k++)
        if (!ports[k] && ++missing && gap) *gap = k;
    if (missing == (gap != NULL)) return ports;
    free(ports);
    return NULL;
}

static int meet_all(mvm_collective *c, const char *prefix, char **names) {
    int code, peers = 0, own = -1;
    for (char **name = names; *name; name++) {
        int k = numbered(*name, prefix, "child");
        if (k < 0) k = numbered(*name, prefix, "leaf");
        int up = named(*name, prefix, "parent") || named(*name, prefix, "hub");
        mvm_port *port = k >= 0 || up ? mvm_open(*name) : NULL;
        if (up) c->parent = port;
        if (k >= 0 && (code = add_branch(c, port, k))) return code;
    }
    c->peers = in_order(names, prefix, "peer", NULL, &peers, &own);
    if (c->parent || c->children) {
        if ((code = survey(c))) fail("the processes do not open the same tree: %s", mvm_strerror(code));
        if (!code && c->peers && (peers != c->size || own != c->index)) {
            fail("the tree is over %d processes, the complete graph over %d", c->size, peers);
            code = MVM_MISUSE;
        }
        return code;
    }
    c->size = 1;
    if (c->peers) {
        c->size = peers;
        c->index = own;
        return lay_tree(c);
    }
    if ((c->dims = in_order(names, prefix, "dim", "stage", &c->dimensions, NULL))) {
        c->size = 1 << c->dimensions;
        c->index = mvm_index();
        if (mvm_count() != c->size) {
            fail("a cube of %d processes has to be over one task with so many; %s has %d", c->size, mvm_task(), mvm_count());
            return MVM_MISUSE;
        }
        return lay_tree(c);
    }
    if (mvm_count() == 1) return MVM_OK;
    fail("a collective needs ports named %sparent or %schild0, %shub or %sleaf0, %speer0, %sdim0 or %sstage0: let a topology be a tree, star, complete, hypercube or butterfly",
         prefix, prefix, prefix, prefix, prefix, prefix, prefix);
    return MVM_MISUSE;
}

mvm_collective *mvm_collective_open(const char *prefix) {
    char **names = mvm_ports();
    mvm_collective *c = names ? calloc(1, sizeof *c) : NULL;
    if (c && meet_all(c, prefix ? prefix : "", names)) mvm_collective_free(c), c = NULL;
    free(names);
    return c;
}

void mvm_collective_free(mvm_collective *c) {
    if (!c) return;
    for (int k = 0; k < c->children; k++) free(c->branches[k].members);
    free(c->branches), free(c->peers), free(c->dims), free(c->out), free(c->in), free(c);
}

int mvm_collective_index(const mvm_collective *c) { return c->index; }
int mvm_collective_size(const mvm_collective *c) { return c->size; }

/* ---- the patterns ---- */

static int up(mvm_collective *c, uint32_t call, void *data, size_t n, mvm_combine *combine) {
    for (int k = 0; k < c->children; k++) {
        ssize_t got = fetch(c, c->branches[k].port, call, (ssize_t)n);
        if (got < 0) return (int)got;
        if (combine) combine(data, c->in + HEAD, n);
    }
    return c->parent ? post(c, c->parent, call, data, n) : MVM_OK;
}

static int down(mvm_collective *c, uint32_t call, void *data, size_t n) {
    if (c->parent) {
        ssize_t got = fetch(c, c->parent, call, (ssize_t)n);
        if (got < 0) return (int)got;
        if (n) memcpy(data, c->in + HEAD, n);
    }
    int code = c->children ? compose(c, call, n) : MVM_OK;
    if (!code && c->children && n) memcpy(c->out + HEAD, data, n);
    for (int k = 0; k < c->children && !code; k++) code = mvm_enqueue(c->branches[k].port, c->out, HEAD + n);
    return code;
}

int mvm_barrier(mvm_collective *c) {
    c->calls++;
    int code = up(c, BARRIER, NULL, 0, NULL);
    return code ? code : down(c, BARRIER, NULL, 0);
}

int mvm_broadcast(mvm_collective *c, void *data, size_t n) {
    c->calls++;
    return down(c, BROADCAST, data, n);
}

int mvm_reduce(mvm_collective *c, void *data, size_t n, mvm_combine *combine) {
    c->calls++;
    return up(c, REDUCE, data, n, combine);
}

int mvm_allreduce(mvm_collective *c, void *data, size_t n, mvm_combine *combine) {
    int code = mvm_reduce(c, data, n, combine);
    return code ? code : mvm_broadcast(c, data, n);
}

/* Entries of a bundle are a u64 length and so many bytes. */
static unsigned char *pack(unsigned char *to, const void *item, size_t n) {
    uint64_t length = n;
    memcpy(to, &length, 8);
    if (n) memcpy(to + 8, item, n);
    return to + 8 + n;
}

static int unpack(const unsigned char *from, void *item, size_t n) {
    uint64_t length;
    memcpy(&length, from, 8);
    if (length != n) return MVM_MISUSE;
    if (n) memcpy(item, from + 8, n);
    return MVM_OK;
}

int mvm_gather(mvm_collective *c, const void *item, size_t n, void *all) {
    size_t entry = 8 + n, used = entry;
    int below = 0, code;
    c->calls++;
    for (int k = 0; k < c->children; k++) below += c->branches[k].count;
    if (c->parent) {
        if ((code = compose(c, GATHER, entry * (size_t)(1 + below)))) return code;
        pack(c->out + HEAD, item, n);
    } else if (n) memcpy((unsigned char *)all + (size_t)c->index * n, item, n);
    for (int k = 0; k < c->children; k++) {
        struct branch *b = &c->branches[k];
        ssize_t got = fetch(c, b->port, GATHER, (ssize_t)(entry * (size_t)b->count));
        if (got < 0) return (int)got;
        if (c->parent) {
            memcpy(c->out + HEAD + used, c->in + HEAD, (size_t)got);
            used += (size_t)got;
        } else
            for (int j = 0; j < b->count; j++)
                if ((code = unpack(c->in + HEAD + (size_t)j * entry, (unsigned char *)all + (size_t)b->members[j] * n, n))) return code;
    }
    return c->parent ? mvm_enqueue(c->parent, c->out, HEAD + used) : MVM_OK;
}

int mvm_scatter(mvm_collective *c, const void *all, size_t n, void *item) {
    size_t entry = 8 + n;
    int code, below = 0;
    c->calls++;
    for (int k = 0; k < c->children; k++) below += c->branches[k].count;
    if (c->parent) {
        ssize_t got = fetch(c, c->parent, SCATTER, (ssize_t)(entry * (size_t)(1 + below)));
        if (got < 0) return (int)got;
        if ((code = unpack(c->in + HEAD, item, n))) return code;
    } else if (n && item != all) memmove(item, (const unsigned char *)all + (size_t)c->index * n, n);
    const unsigned char *rest = c->in + HEAD + entry;
    for (int k = 0; k < c->children; k++) {
        struct branch *b = &c->branches[k];
        size_t length = entry * (size_t)b->count;
        if ((code = compose(c, SCATTER, length))) return code;
        unsigned char *to = c->out + HEAD;
        if (c->parent) {
            memcpy(to, rest, length);
            rest += length;
        } else
            for (int j = 0; j < b->count; j++) to = pack(to, (const unsigned char *)all + (size_t)b->members[j] * n, n);
        if ((code = mvm_enqueue(b->port, c->out, HEAD + length))) return code;
    }
    return MVM_OK;
}

/* Each pair meets once, in rounds in which everyone has one partner: whoever
 * waits, waits for somebody in an earlier round, or for one who deals with it. */
static int alltoall_complete(mvm_collective *c, const unsigned char *out, size_t n, unsigned char *in) {
    for (int round = 0; round < c->size; round++) {
        int peer = (round - c->index + c->size) % c->size, code;
        if (peer == c->index) continue;
        if ((code = compose(c, ALLTOALL, n))) return code;
        if (n) memcpy(c->out + HEAD, out + (size_t)peer * n, n);
        ssize_t got = swap_with(c, c->peers[peer], ALLTOALL, c->index < peer, (ssize_t)n);
        if (got < 0) return (int)got;
        if (n) memcpy(in + (size_t)peer * n, c->in + HEAD, n);
    }
    if (n) memcpy(in + (size_t)c->index * n, out + (size_t)c->index * n, n);
    return MVM_OK;
}

/* Along each dimension goes what belongs to the other side of it. In place k is
 * first what goes to k, and in the end what came from k. */
static int alltoall_cube(mvm_collective *c, const unsigned char *out, size_t n, unsigned char *in) {
    size_t entry = 8 + n, length = entry * (size_t)(c->size / 2);
    if (n) memcpy(in, out, n * (size_t)c->size);
    for (int d = 0; d < c->dimensions; d++) {
        int code = compose(c, ALLTOALL, length);
        if (code) return code;
        unsigned char *to = c->out + HEAD;
        for (int k = 0; k < c->size; k++)
            if ((k ^ c->index) >> d & 1) to = pack(to, in + (size_t)k * n, n);
        ssize_t got = swap_with(c, c->dims[d], ALLTOALL, !(c->index >> d & 1), (ssize_t)length);
        if (got < 0) return (int)got;
        const unsigned char *from = c->in + HEAD;
        for (int k = 0; k < c->size; k++) /* the neighbour's k-th place is this one's k ^ 2^d */
            if (!((k ^ c->index) >> d & 1)) {
                if ((code = unpack(from, in + (size_t)(k ^ 1 << d) * n, n))) return code;
                from += entry;
            }
    }
    return MVM_OK;
}

/* By way of the root. */
static int alltoall_tree(mvm_collective *c, const unsigned char *out, size_t n, unsigned char *in) {
    size_t entry = 8 + n, row = entry * (size_t)c->size, size = (size_t)c->size;
    unsigned char *own = calloc(size, entry), *all = c->parent ? NULL : malloc(2 * row * size), *turned = all ? all + row * size : NULL, *to = own;
    int code = own && (all || c->parent) ? MVM_OK : MVM_SYSTEM;
    for (size_t k = 0; k < size && !code; k++) to = pack(to, out + k * n, n);
    if (!code) code = mvm_gather(c, own, row, all);
    for (size_t k = 0; all && k < size && !code; k++)
        for (size_t j = 0; j < size; j++) memcpy(turned + k * row + j * entry, all + j * row + k * entry, entry);
    if (!code) code = mvm_scatter(c, turned, row, own);
    for (size_t k = 0; k < size && !code; k++) code = unpack(own + k * entry, in + k * n, n);
    free(own), free(all);
    return code;
}

int mvm_alltoall(mvm_collective *c, const void *out, size_t n, void *in) {
    if (!c->peers && !c->dims) return alltoall_tree(c, out, n, in);
    c->calls++;
    return c->peers ? alltoall_complete(c, out, n, in) : alltoall_cube(c, out, n, in);
}
