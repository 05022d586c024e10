/*
 * sanitize.h
 *	  Chunks with exact ends, for builds with AddressSanitizer only
 *	  (src/meridian/instance/sanitizer.py includes this first in every file).
 *
 * A memory context carves small chunks out of blocks, so the sanitizer sees
 * neither their ends nor their release.  Chunks above the limit of an
 * allocation set are blocks of their own: here every chunk is made that large
 * and what lies behind the size asked for is poisoned.  free() ends the
 * poison, so a reset or deleted context leaves none behind.
 */
#ifndef MER_SANITIZE_H
#define MER_SANITIZE_H

#include "postgres.h"

#include "utils/memutils.h"

#include <dlfcn.h>
#include <sanitizer/asan_interface.h>

/* Of the runtime; gcc does not install the header that declares it. */
extern size_t __sanitizer_get_current_allocated_bytes(void);

/* Above ALLOC_CHUNK_LIMIT of aset.c. */
#define MER_OWN_BLOCK_BYTES 8256
/* With more than this allocated, chunks are ordinary ones again. */
#define MER_EXACT_LIMIT_BYTES ((size_t) 512 << 20)

/*
 * libubsan takes its log_path to a function that libasan has too and answers
 * first, so its own reports would go to standard error.
 */
static void __attribute__((constructor))
mer_ubsan_report_path(void)
{
	const char *path = getenv("MERIDIAN_SANITIZE_REPORTS");
	void	   *ubsan = dlopen("libubsan.so.1", RTLD_NOLOAD | RTLD_LAZY);
	void		(*set) (const char *) = NULL;

	if (ubsan != NULL)
		set = (void (*) (const char *)) dlsym(ubsan, "__sanitizer_set_report_path");
	if (path != NULL && set != NULL)
		set(path);
}

static inline bool
mer_exact_in(MemoryContext context)
{
	return context->type == T_AllocSetContext &&
		__sanitizer_get_current_allocated_bytes() < MER_EXACT_LIMIT_BYTES;
}

static inline void *
mer_poison_rest(void *chunk, Size size, Size total)
{
	ASAN_POISON_MEMORY_REGION((char *) chunk + size, MAXALIGN(total) - size);
	return chunk;
}

static inline void *
mer_exact_alloc(MemoryContext context, Size size)
{
	Size		total = Max(size, MER_OWN_BLOCK_BYTES);

	if (!mer_exact_in(context))
		return MemoryContextAlloc(context, size);
	return mer_poison_rest(MemoryContextAlloc(context, total), size, total);
}

static inline void *
mer_exact_alloc_zero(MemoryContext context, Size size)
{
	return memset(mer_exact_alloc(context, size), 0, size);
}

static inline void *
mer_exact_realloc(void *chunk, Size size)
{
	Size		total = Max(size, MER_OWN_BLOCK_BYTES);

	if (!mer_exact_in(GetMemoryChunkContext(chunk)))
		return repalloc(chunk, size);
	return mer_poison_rest(repalloc(chunk, total), size, total);
}

static inline char *
mer_exact_strdup(const char *text)
{
	Size		size = strlen(text) + 1;

	return memcpy(mer_exact_alloc(CurrentMemoryContext, size), text, size);
}

static inline Node *
mer_exact_node(Size size, NodeTag tag)
{
	Node	   *node = mer_exact_alloc_zero(CurrentMemoryContext, size);

	node->type = tag;
	return node;
}

#define MemoryContextAlloc(context, size) mer_exact_alloc(context, size)
#define MemoryContextAllocZero(context, size) mer_exact_alloc_zero(context, size)
#define palloc(size) mer_exact_alloc(CurrentMemoryContext, size)
#define palloc0(size) mer_exact_alloc_zero(CurrentMemoryContext, size)
#define palloc_mul(a, b) mer_exact_alloc(CurrentMemoryContext, mul_size(a, b))
#define palloc0_mul(a, b) mer_exact_alloc_zero(CurrentMemoryContext, mul_size(a, b))
#define repalloc(chunk, size) mer_exact_realloc(chunk, size)
#define repalloc_mul(chunk, a, b) mer_exact_realloc(chunk, mul_size(a, b))
#define pstrdup(text) mer_exact_strdup(text)
#define newNode(size, tag) mer_exact_node(size, tag)

/* A bump context has no chunks that are blocks of their own. */
#define BumpContextCreate AllocSetContextCreate

#endif							/* MER_SANITIZE_H */
