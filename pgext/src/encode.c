/*
 * encode.c
 *	  The write set of docs/formats.md, chunk by chunk, from the buffers.
 *
 * Ops grow side by side and are closed together when the chunk is full, so
 * memory stays bounded by a chunk however large the transaction is.
 *
 * No server is needed here: the simulation links this file, too (writelib.c).
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "store.h"

#define OP_PUT 1
#define OP_DELETE 2
#define OP_BIG 5
#define FLAG_FRESH 1
#define FLAG_BLIND 2

/* Per-key overhead that counts towards the size of a transaction. */
#define KEY_OVERHEAD 16

typedef struct Builder
{
	struct Builder *next;
	int			op;
	int64		sid;
	int			flags;
	const MerShape *shape;		/* PUT */
	AttrNumber	attnum;			/* BIG */
	uint32		n;
	StringInfoData keys;
	StringInfoData w;
	StringInfoData i;
	StringInfoData rows;
} Builder;

typedef struct Encoder
{
	MerChunkSink sink;
	Size		chunk_bytes;
	Builder    *builders;
	StringInfoData ops;
	int			nops;
	Size		pending;		/* bytes in builders */
	uint64		rows;
	StringInfoData row;			/* a row whose big values were taken out */
} Encoder;

void
mer_put_hash(StringInfo out, int64 sid, int kind, const char *key, uint32 len)
{
	uint64		hash = mer_conflict_hash(sid, kind, key, len);

#ifdef WORDS_BIGENDIAN
	hash = pg_bswap64(hash);
#endif
	appendBinaryStringInfo(out, &hash, sizeof(hash));
}

/* ---------- what becomes of an entry ---------- */

typedef enum Fate
{
	FATE_NONE,
	FATE_PUT,
	FATE_DELETE
} Fate;

static Fate
entry_fate(MerEntry *e, MerVersion **version)
{
	*version = mer_entry_newest(e);
	if (*version == NULL)
		return FATE_NONE;
	if (!(*version)->tombstone)
		return FATE_PUT;
	return e->base_present ? FATE_DELETE : FATE_NONE;
}

/* The row ended on the way: its identity is another one now. */
static bool
was_deleted(MerEntry *e)
{
	for (MerVersion *v = e->newest; v; v = v->older)
		if (v->tombstone && !v->dead)
			return true;
	return false;
}

static bool
skip_buf(MerBuf *buf)
{
	return buf->nentries == 0 || mer_txn_dropped(buf->sid);
}

uint64
mer_encoded_size(void)
{
	uint64		size = mer_notify_size();
	MerVersion *v;

	for (MerBuf *buf = mer_txn.first; buf; buf = buf->next)
	{
		if (skip_buf(buf))
			continue;
		for (MerEntry *e = mer_entry_first(buf); e; e = mer_entry_next(e))
			if (entry_fate(e, &v) != FATE_NONE)
				size += e->klen + v->rowlen + KEY_OVERHEAD;
	}
	return size;
}

/* ---------- chunks ---------- */

static void
close_builder(Encoder *enc, Builder *b)
{
	StringInfo	out = &enc->ops;

	if (b->op == OP_BIG)
	{
		mp_put_array(out, 5);
		mp_put_int(out, OP_BIG);
		mp_put_int(out, b->sid);
		mp_put_int(out, b->attnum);
		mp_put_array(out, b->n);
		appendBinaryStringInfo(out, b->keys.data, b->keys.len);
		mp_put_array(out, b->n);
		appendBinaryStringInfo(out, b->rows.data, b->rows.len);
	}
	else
	{
		mp_put_array(out, b->op == OP_PUT ? 8 : 6);
		mp_put_int(out, b->op);
		mp_put_int(out, b->sid);
		mp_put_int(out, b->flags);
		if (b->op == OP_PUT)
		{
			mp_put_array(out, b->shape->n);
			for (int i = 0; i < b->shape->n; i++)
				mp_put_int(out, b->shape->attnums[i]);
		}
		mp_put_array(out, b->n);
		appendBinaryStringInfo(out, b->keys.data, b->keys.len);
		mp_put_bin(out, b->w.data, b->w.len);
		mp_put_bin(out, b->i.data, b->i.len);
		if (b->op == OP_PUT)
		{
			mp_put_array(out, b->n);
			appendBinaryStringInfo(out, b->rows.data, b->rows.len);
		}
	}
	enc->nops++;
}

static void
close_builders(Encoder *enc)
{
	Builder    *next;

	for (Builder *b = enc->builders; b; b = next)
	{
		next = b->next;
		close_builder(enc, b);
		pfree(b->keys.data);
		pfree(b->w.data);
		pfree(b->i.data);
		pfree(b->rows.data);
		pfree(b);
	}
	enc->builders = NULL;
	enc->pending = 0;
}

static void
ship_chunk(Encoder *enc, bool last)
{
	StringInfoData chunk;

	close_builders(enc);
	if (enc->nops == 0 && !last)
		return;
	initStringInfo(&chunk);
	mp_put_array(&chunk, enc->nops);
	appendBinaryStringInfo(&chunk, enc->ops.data, enc->ops.len);
	enc->sink(&chunk, last);
	pfree(chunk.data);
	resetStringInfo(&enc->ops);
	enc->nops = 0;
}

static Builder *
builder(Encoder *enc, int op, int64 sid, int flags, const MerShape *shape, AttrNumber attnum)
{
	Builder    *b;

	for (b = enc->builders; b; b = b->next)
		if (b->op == op && b->sid == sid && b->flags == flags &&
			b->shape == shape && b->attnum == attnum)
			return b;
	b = palloc0(sizeof(Builder));
	b->op = op;
	b->sid = sid;
	b->flags = flags;
	b->shape = shape;
	b->attnum = attnum;
	initStringInfo(&b->keys);
	initStringInfo(&b->w);
	initStringInfo(&b->i);
	initStringInfo(&b->rows);
	b->next = enc->builders;
	enc->builders = b;
	return b;
}

/*
 * Identity hashes are parallel to the keys, 0 for a key without one, unless
 * no key has one: so a write set can be cut by key range.
 */
void
mer_pad_hashes(StringInfo out, uint32 n)
{
	static const char zero[sizeof(uint64)];

	while (out->len < (int) (n * sizeof(uint64)))
		appendBinaryStringInfo(out, zero, sizeof(zero));
}

static void
add_key(Builder *b, MerEntry *e, bool identity)
{
	mp_put_bin(&b->keys, e->key, e->klen);
	if (!(b->flags & FLAG_BLIND))
	{
		mer_put_hash(&b->w, b->sid, MER_HASH_ROW, e->key, e->klen);
		if (identity)
		{
			mer_pad_hashes(&b->i, b->n);
			mer_put_hash(&b->i, b->sid, MER_HASH_IDENTITY, e->key, e->klen);
		}
		else if (b->i.len > 0)
			mer_pad_hashes(&b->i, b->n + 1);
	}
	b->n++;
}

/* Big values travel in ops of their own; the row holds a marker for each. */
static void
take_out_big(Encoder *enc, MerEntry *e, MerVersion *v)
{
	MpReader	r = {v->row, v->row + v->rowlen};
	uint32		n = mp_get_array(&r);

	resetStringInfo(&enc->row);
	mp_put_array(&enc->row, n);
	for (uint32 i = 0; i < n; i++)
	{
		const char *start = r.p;
		const char *data = NULL;
		uint32		len = 0;

		mp_skip(&r);
		if (r.p - start > MER_BIG_BYTES)
		{
			MpReader	value = {start, r.p};

			data = mp_get_bytes(&value, &len);
		}
		if (len > MER_BIG_BYTES)
		{
			Builder    *b = builder(enc, OP_BIG, v->sid, 0, NULL, v->shape->attnums[i]);

			mp_put_bin(&b->keys, e->key, e->klen);
			mp_put_bin(&b->rows, data, len);
			b->n++;
			mp_put_str(&enc->row, "b", 1);
		}
		else
			appendBinaryStringInfo(&enc->row, start, r.p - start);
	}
}

/* ---------- entries ---------- */

static int
entry_flags(MerBuf *buf, MerEntry *e, bool created)
{
	int			flags = 0;

	if (!e->base_present)
		flags |= FLAG_FRESH;
	/* Nobody else can name a key of a new relation, or a new hidden id. */
	if (created || e->blind || (buf->hidden && !e->base_present))
		flags |= FLAG_BLIND;
	return flags;
}

static void
encode_entry(Encoder *enc, MerBuf *buf, MerEntry *e, bool created)
{
	MerVersion *v;
	Fate		fate = entry_fate(e, &v);
	Builder    *b;
	bool		identity;

	if (fate == FATE_NONE)
		return;
	identity = !buf->is_index && buf->sid >= 1000 &&
		(fate == FATE_DELETE || !e->base_present || e->identity || was_deleted(e));
	if (fate == FATE_DELETE)
		b = builder(enc, OP_DELETE, buf->sid, entry_flags(buf, e, created) & FLAG_BLIND, NULL, 0);
	else
		b = builder(enc, OP_PUT, buf->sid, entry_flags(buf, e, created), v->shape, 0);
	add_key(b, e, identity);
	if (fate == FATE_PUT)
	{
		if (v->has_big)
		{
			take_out_big(enc, e, v);
			appendBinaryStringInfo(&b->rows, enc->row.data, enc->row.len);
		}
		else
			appendBinaryStringInfo(&b->rows, v->row, v->rowlen);
	}
	if (!buf->is_index)
		enc->rows++;
	enc->pending += e->klen + v->rowlen + KEY_OVERHEAD;
	if (enc->pending > enc->chunk_bytes)
		ship_chunk(enc, false);
}

static void
encode_buf(Encoder *enc, MerBuf *buf)
{
	bool		created = mer_txn_created(buf->sid);

	if (skip_buf(buf))
		return;
	for (MerEntry *e = mer_entry_first(buf); e; e = mer_entry_next(e))
		encode_entry(enc, buf, e, created);
}

static void
encode_schema(Encoder *enc)
{
	for (int i = 0; i < mer_txn_schema_count(); i++)
	{
		uint32		len;
		const char *op = mer_txn_schema_get(i, &len);

		appendBinaryStringInfo(&enc->ops, op, len);
		enc->nops++;
	}
}

static void
lock_op_done(void *arg)
{
	Encoder    *enc = arg;

	enc->nops++;
	if (enc->ops.len > enc->chunk_bytes)
		ship_chunk(enc, false);
}

/* Chunks end soon after chunk_bytes.  Returns the number of rows mutated. */
uint64
mer_encode(MerChunkSink sink, Size chunk_bytes)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "meridian write set",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	Encoder		enc = {.sink = sink,.chunk_bytes = chunk_bytes};

	initStringInfo(&enc.ops);
	initStringInfo(&enc.row);
	encode_schema(&enc);
	mer_encode_locks(&enc.ops, lock_op_done, &enc);
	mer_encode_row_checks(&enc.ops, lock_op_done, &enc);
	mer_encode_notes(&enc.ops, lock_op_done, &enc);
	for (MerBuf *buf = mer_txn.first; buf; buf = buf->next)
		encode_buf(&enc, buf);
	mer_txn.rows = enc.rows;
	ship_chunk(&enc, true);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
	return enc.rows;
}
