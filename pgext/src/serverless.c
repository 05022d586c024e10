/*
 * serverless.c
 *	  What undo.c, writebuf.c, encode.c, locks.c, rowcheck.c, frames.c, proto.c
 *	  and msgpack.c need of PostgreSQL, where there is no server: memory, growing
 *	  strings, ordered trees, a table of relations, errors.
 *
 * Only linked into the library of writelib.c; the headers are the server's.
 * An error leaves through merw_fail.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "store.h"
#include "writelib.h"

/* ---------- memory: each chunk lies in a ring of its context ---------- */

typedef struct Chunk
{
	struct Chunk *prev;
	struct Chunk *next;
} Chunk;

typedef struct Arena
{
	Chunk		ring;
} Arena;

static Arena top;
MemoryContext CurrentMemoryContext = (MemoryContext) &top;
MemoryContext TopMemoryContext = (MemoryContext) &top;
MemoryContext TopTransactionContext = (MemoryContext) &top;

static void *
chunk_link(Arena *arena, Chunk *chunk)
{
	if (arena->ring.next == NULL)
		arena->ring.next = arena->ring.prev = &arena->ring;
	if (chunk == NULL)
		merw_fail("out of memory");
	chunk->prev = &arena->ring;
	chunk->next = arena->ring.next;
	chunk->next->prev = chunk->prev->next = chunk;
	return chunk + 1;
}

static Chunk *
chunk_unlink(void *pointer)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;

	chunk->prev->next = chunk->next;
	chunk->next->prev = chunk->prev;
	return chunk;
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	return chunk_link((Arena *) context, malloc(sizeof(Chunk) + size));
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return chunk_link((Arena *) context, calloc(1, sizeof(Chunk) + size));
}

void *
MemoryContextAllocHuge(MemoryContext context, Size size)
{
	return MemoryContextAlloc(context, size);
}

void *
palloc(Size size)
{
	return MemoryContextAlloc(CurrentMemoryContext, size);
}

void *
palloc0(Size size)
{
	return MemoryContextAllocZero(CurrentMemoryContext, size);
}

void
pfree(void *pointer)
{
	free(chunk_unlink(pointer));
}

/* Stays in its ring: between the same neighbours. */
void *
repalloc(void *pointer, Size size)
{
	Chunk	   *chunk = chunk_unlink(pointer);
	Chunk	   *prev = chunk->prev;

	chunk = realloc(chunk, sizeof(Chunk) + size);
	if (chunk == NULL)
		merw_fail("out of memory");
	chunk->prev = prev;
	chunk->next = prev->next;
	chunk->next->prev = prev->next = chunk;
	return chunk + 1;
}

void *
repalloc_huge(void *pointer, Size size)
{
	return repalloc(pointer, size);
}

static MemoryContext
arena_new(void)
{
	Arena	   *arena = malloc(sizeof(Arena));

	if (arena == NULL)
		merw_fail("out of memory");
	arena->ring.next = arena->ring.prev = &arena->ring;
	return (MemoryContext) arena;
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size minContextSize,
							  Size initBlockSize, Size maxBlockSize)
{
	return arena_new();
}

MemoryContext
BumpContextCreate(MemoryContext parent, const char *name, Size minContextSize,
				  Size initBlockSize, Size maxBlockSize)
{
	return arena_new();
}

void
MemoryContextDelete(MemoryContext context)
{
	Arena	   *arena = (Arena *) context;

	while (arena->ring.next != &arena->ring)
		pfree(arena->ring.next + 1);
	free(arena);
}

/* ---------- strings ---------- */

void
enlargeStringInfo(StringInfo str, int needed)
{
	Size		wanted = (Size) str->len + needed + 1;

	if (wanted <= (Size) str->maxlen)
		return;
	if (wanted > MaxAllocSize)
		merw_fail("string too long");
	wanted = Max(wanted, 2 * (Size) str->maxlen);
	str->maxlen = (int) Min(wanted, MaxAllocSize);
	str->data = str->data ? repalloc(str->data, str->maxlen) : palloc(str->maxlen);
}

void
resetStringInfo(StringInfo str)
{
	str->len = str->cursor = 0;
	str->data[0] = '\0';
}

void
initStringInfo(StringInfo str)
{
	memset(str, 0, sizeof(*str));
	enlargeStringInfo(str, 63);
	resetStringInfo(str);
}

void
appendBinaryStringInfo(StringInfo str, const void *data, int datalen)
{
	enlargeStringInfo(str, datalen);
	if (datalen > 0)
		memcpy(str->data + str->len, data, datalen);
	str->len += datalen;
	str->data[str->len] = '\0';
}

/* ---------- ordered trees: a treap; the color is its random priority ---------- */

struct RBTree
{
	RBTNode    *root;
	Size		node_size;
	rbt_comparator compare;
	rbt_combiner combine;
	rbt_allocfunc alloc;
	uint32		random;
	RBTNode		nil;			/* its own child: writebuf.c knows leaves by that */
};

RBTree *
rbt_create(Size node_size, rbt_comparator comparator, rbt_combiner combiner,
		   rbt_allocfunc allocfunc, rbt_freefunc freefunc, void *arg)
{
	RBTree	   *tree = palloc0(sizeof(RBTree));

	tree->node_size = node_size;
	tree->compare = comparator;
	tree->combine = combiner;
	tree->alloc = allocfunc;
	tree->random = 2463534242u;
	tree->nil.left = tree->nil.right = &tree->nil;
	tree->root = &tree->nil;
	return tree;
}

static void
replace_child(RBTree *tree, RBTNode *old, RBTNode *new)
{
	new->parent = old->parent;
	if (old->parent == NULL)
		tree->root = new;
	else if (old->parent->left == old)
		old->parent->left = new;
	else
		old->parent->right = new;
}

/* The node takes its parent's place, the parent becomes its child. */
static void
rotate_up(RBTree *tree, RBTNode *node)
{
	RBTNode    *parent = node->parent;
	bool		is_left = parent->left == node;
	RBTNode    *inner = is_left ? node->right : node->left;

	replace_child(tree, parent, node);
	if (is_left)
	{
		node->right = parent;
		parent->left = inner;
	}
	else
	{
		node->left = parent;
		parent->right = inner;
	}
	parent->parent = node;
	if (inner != &tree->nil)
		inner->parent = parent;
}

RBTNode *
rbt_insert(RBTree *rbt, const RBTNode *data, bool *isNew)
{
	RBTNode   **link = &rbt->root;
	RBTNode    *parent = NULL;
	RBTNode    *node;

	while (*link != &rbt->nil)
	{
		int			c = rbt->compare(data, *link, NULL);

		if (c == 0)
		{
			rbt->combine(*link, data, NULL);
			*isNew = false;
			return *link;
		}
		parent = *link;
		link = c < 0 ? &parent->left : &parent->right;
	}
	node = rbt->alloc(NULL);
	memcpy(node + 1, data + 1, rbt->node_size - sizeof(RBTNode));
	rbt->random ^= rbt->random << 13;
	rbt->random ^= rbt->random >> 17;
	rbt->random ^= rbt->random << 5;
	node->color = (char) (rbt->random & 0x7f);
	node->left = node->right = &rbt->nil;
	node->parent = parent;
	*link = node;
	while (node->parent && node->parent->color < node->color)
		rotate_up(rbt, node);
	*isNew = true;
	return node;
}

RBTNode *
rbt_leftmost(RBTree *rbt)
{
	RBTNode    *node = rbt->root;

	if (node == &rbt->nil)
		return NULL;
	while (node->left != &rbt->nil)
		node = node->left;
	return node;
}

/* The nearest node on one side (dir -1: below, 1: above), or at the probe itself. */
static RBTNode *
nearest(RBTree *rbt, const RBTNode *probe, int dir, bool equal_match)
{
	RBTNode    *node = rbt->root;
	RBTNode    *best = NULL;

	while (node != &rbt->nil)
	{
		int			c = rbt->compare(probe, node, NULL);

		if (c == 0 && equal_match)
			return node;
		if (dir > 0 ? c < 0 : c > 0)
		{
			best = node;
			node = dir > 0 ? node->left : node->right;
		}
		else
			node = dir > 0 ? node->right : node->left;
	}
	return best;
}

RBTNode *
rbt_find(RBTree *rbt, const RBTNode *data)
{
	RBTNode    *node = nearest(rbt, data, 1, true);

	return node && rbt->compare(data, node, NULL) == 0 ? node : NULL;
}

RBTNode *
rbt_find_great(RBTree *rbt, const RBTNode *data, bool equal_match)
{
	return nearest(rbt, data, 1, equal_match);
}

RBTNode *
rbt_find_less(RBTree *rbt, const RBTNode *data, bool equal_match)
{
	return nearest(rbt, data, -1, equal_match);
}

/* ---------- the relations written, by storage id: a transaction has a few ---------- */

struct HTAB
{
	Size		keysize;
	Size		entrysize;
	int			n;
	int			max;
	void	  **entries;
};

HTAB *
hash_create(const char *tabname, long nelem, const HASHCTL *info, int flags)
{
	HTAB	   *table = MemoryContextAllocZero(info->hcxt, sizeof(HTAB));

	table->keysize = info->keysize;
	table->entrysize = info->entrysize;
	table->max = 16;
	table->entries = MemoryContextAlloc(info->hcxt, table->max * sizeof(void *));
	return table;
}

void *
hash_search(HTAB *hashp, const void *keyPtr, HASHACTION action, bool *foundPtr)
{
	void	   *entry;

	for (int i = 0; i < hashp->n; i++)
		if (memcmp(hashp->entries[i], keyPtr, hashp->keysize) == 0)
		{
			if (foundPtr)
				*foundPtr = true;
			return hashp->entries[i];
		}
	if (foundPtr)
		*foundPtr = false;
	if (action != HASH_ENTER)
		return NULL;
	if (hashp->n == hashp->max)
	{
		hashp->max *= 2;
		hashp->entries = repalloc(hashp->entries, hashp->max * sizeof(void *));
	}
	entry = MemoryContextAllocZero(mer_txn.cxt, hashp->entrysize);
	memcpy(entry, keyPtr, hashp->keysize);
	hashp->entries[hashp->n++] = entry;
	return entry;
}

/* ---------- errors: the message is its format ---------- */

static const char *message = "";

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

int
errcode(int sqlerrcode)
{
	return 0;
}

int
errmsg(const char *fmt,...)
{
	message = fmt;
	return 0;
}

int
errmsg_internal(const char *fmt,...)
{
	message = fmt;
	return 0;
}

int
errdetail(const char *fmt,...)
{
	return 0;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	merw_fail(message);
}

void
mp_malformed(const char *why)
{
	merw_fail(why);
}

/* ---------- what other parts of the extension would add: nothing here ---------- */

int64
mer_limit(const char *name)
{
	return INT64_C(10) * 1024 * 1024 * 1024;
}

int
mer_ddl_pending_natts(int64 sid, int natts)
{
	return natts;
}

int
mer_relmap_mark(void)
{
	return 0;
}

void
mer_relmap_undo(int mark)
{
}

int
mer_checks_mark(void)
{
	return 0;
}

void
mer_checks_release(int mark)
{
}

uint64
mer_notify_size(void)
{
	return 0;
}

void
mer_encode_notes(StringInfo out, void (*op_done) (void *), void *arg)
{
}
