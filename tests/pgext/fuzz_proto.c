/*
 * fuzz_proto.c
 *	  Random streams against proto.c and msgpack.c; a sanitizer says what is wrong.
 *	  Arguments: first seed, number of seeds.  Every chunk has its exact size.
 */
#include "proto.h"

#include <stdio.h>

extern MerProto *merlib_new(const MerProtoOps *ops, void *arg);
extern void merlib_free(MerProto *p);
extern MerStatus merlib_send(MerProto *p, int type, uint32 id, const char *fields, size_t len,
							 int n_fields, int64 deadline_ms);
extern int	merlib_skip(const char *data, size_t len, size_t *used);
extern int	merlib_int(const char *data, size_t len, int64 *value);

#define STREAM_MAX 400000

static uint64 state;
static char stream[STREAM_MAX];
static size_t stream_len,
			stream_at;

static uint32
rnd(uint32 below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32) (state >> 33) % below;
}

static bool do_connect(void *arg) { (void) arg; return true; }
static void do_close(void *arg) { (void) arg; }
static int64 do_now(void *arg) { (void) arg; return 0; }
static void *do_keep(void *arg, size_t len) { (void) arg; return malloc(len); }
static int do_wait(void *arg, int events, int64 ms) { (void) arg; (void) ms; return events; }
/* A caller's memory context: what is left in it goes with it.  Kept chunks must be released. */
#define OWNED_MAX 64
static void *owned[OWNED_MAX];

static void *
do_alloc(void *arg, size_t len)
{
	int			i = 0;

	(void) arg;
	while (owned[i] != NULL)
		if (++i == OWNED_MAX)
			abort();
	return owned[i] = malloc(len);
}

static void
do_release(void *arg, void *chunk)
{
	(void) arg;
	for (int i = 0; i < OWNED_MAX; i++)
		if (owned[i] == chunk)
			owned[i] = NULL;
	free(chunk);
}

static int64
do_send(void *arg, const char *data, size_t len)
{
	(void) arg;
	(void) data;
	return (int64) (len > 1 ? 1 + rnd((uint32) len - 1) : len);
}

static int64
do_recv(void *arg, char *data, size_t len)
{
	size_t		n = stream_len - stream_at;

	(void) arg;
	if (n == 0)
		return -1;
	n = n < len ? n : len;
	if (rnd(3) > 0)
		n = 1 + rnd((uint32) n);
	memcpy(data, stream + stream_at, n);
	stream_at += n;
	return (int64) n;
}

/* One frame: right, or with a wrong length, cut, or with random bytes in it. */
static void
add_frame(uint32 id)
{
	uint32		body = 7 + (rnd(6) == 0 ? rnd(150000) : rnd(60));
	uint32		told = rnd(12) == 0 ? rnd(1u << (1 + rnd(27))) : body;
	char	   *f = stream + stream_len;

	if (stream_len + 4 + body > STREAM_MAX)
		return;
	for (uint32 i = 0; i < body; i++)
		f[4 + i] = (char) rnd(256);
	memcpy(f, &told, 4);
	f[4] = (char) 0x93;
	f[5] = (char) (rnd(5) == 0 ? MER_ERROR : MER_RESULT);
	f[6] = (char) 0xce;
	for (int i = 0; i < 4; i++)
		f[7 + i] = (char) (id >> (24 - 8 * i));
	if (rnd(8) == 0)
		f[4 + rnd(body)] = (char) rnd(256);
	stream_len += 4 + body;
	if (rnd(15) == 0)
		stream_len -= rnd(body);
}

static void
read_answer(const MerAnswer *answer)
{
	size_t		len = (size_t) (answer->rest.end - answer->rest.p),
				used;
	char	   *copy = malloc(len ? len : 1);
	int64		value;

	memcpy(copy, answer->rest.p, len);
	for (size_t at = 0; at < len && merlib_skip(copy + at, len - at, &used); at += used)
		merlib_int(copy + at, len - at, &value);
	free(copy);
}

static const MerProtoOps ops = {do_connect, do_close, do_send, do_recv, do_wait, do_now,
	do_alloc, do_keep, do_release};

static int
run_seed(uint64 seed)
{
	MerProto   *p;
	uint32		ids[8];
	uint32		n;
	MerAnswer	answer;
	int			answered = 0;

	state = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
	n = 1 + rnd(8);
	stream_len = stream_at = 0;
	p = merlib_new(&ops, NULL);
	mer_proto_connect(p);
	for (uint32 i = 0; i < n; i++)
	{
		ids[i] = mer_proto_next_id(p);
		merlib_send(p, rnd(4) == 0 ? MER_PART : MER_GET, ids[i], "\x01", 1, 3, 0);
	}
	for (uint32 i = 0; i < n + 2; i++)
		add_frame(rnd(6) == 0 ? rnd(20) : ids[rnd(n)]);
	for (uint32 i = 0; i < n; i++)
	{
		if (rnd(6) == 0)
			mer_proto_forget(p, ids[rnd(n)]);
		else if (p->connected && mer_proto_wait(p, ids[i], 1, &answer) == MER_OK)
		{
			answered++;
			read_answer(&answer);
			do_release(NULL, answer.body);
		}
	}
	if (mer_proto_refused(p, &answer))
		do_release(NULL, answer.body);
	merlib_free(p);
	for (int i = 0; i < OWNED_MAX; i++)
		do_release(NULL, owned[i]);
	return answered;
}

int
main(int argc, char **argv)
{
	uint64		first = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
	uint64		count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;
	long		answered = 0;

	for (uint64 seed = first; seed < first + count; seed++)
		answered += run_seed(seed);
	printf("%ld answers\n", answered);
	return 0;
}
