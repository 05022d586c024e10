/*
 * coherence.h
 *	  This instance's catalog version in shared memory, and what sessions do
 *	  when it differs from the one in force (docs/rfcs, "Catalog coherence").
 */
#ifndef MERIDIAN_COHERENCE_H
#define MERIDIAN_COHERENCE_H

#include "meridian.h"

#include "nodes/parsenodes.h"
#include "storage/lock.h"

/* As in limits.py. */
#define MER_CATALOG_WAIT_MS 2000
#define MER_CATALOG_LOCK_MS 100

#define MER_OC001 "schema has been updated by another transaction, please retry: (OC001)"


/* The version to send with a request. */
extern int64 mer_catver(void);

/*
 * The running transaction brings this version; others see it once it has
 * committed, before its locks go.  global_from_elsewhere: it was made by another
 * instance and has global reach.
 */
extern void mer_version_moves(int64 version, bool additive, bool global_from_elsewhere);

/*
 * The last version that is not merely additive, and the one that was sent when
 * this transaction got its tau_start.
 */
extern int64 mer_last_change(void);
extern int64 mer_version_at_start(void);

/*
 * Did a change of global reach arrive from another instance after this
 * transaction began to look at the catalogs?
 */
extern bool mer_catalog_changed_globally(void);

/* 40001 with the words of OC001. */
pg_noreturn extern void mer_schema_changed(void);

/* ---------- requests that ask for tau_start (wire.c) ---------- */

/* Remember a request about to be sent that asks for tau_start. */
extern void mer_stale_note(StringInfo request);

/*
 * An ERROR answer to request *id.  True: it said that this instance's catalog
 * is behind, which it no longer is; the request went out again as *id.
 */
extern bool mer_stale_retry(MerReply *reply, uint32 *id);

/* ---------- applying beside sessions (catlock.c) ---------- */

/* Relations that apply waits for: who waits for apply must not hold them. */
extern void mer_apply_wants(List *relids);

/* AccessExclusiveLock on all of them; holders that stay too long have to go. */
extern void mer_apply_lock(List *relids);

/* Run in a subtransaction, again and again while local transactions stand in its way. */
extern void mer_apply_insist(void (*step) (void *arg), void *arg);

/* Once only; false: a lock was not to be had within MER_CATALOG_LOCK_MS. */
extern bool mer_apply_attempt(void (*step) (void *arg), void *arg);
extern void mer_catlock_init(void);

/* ---------- sessions idle in their transaction (sendaway.c) ---------- */

/* False: it is not idle, or not there any more. */
extern bool mer_ask_to_leave(VirtualTransactionId vxid);

/* Before a statement that ends a transaction: 40001 where it was rolled back unheard. */
extern void mer_sent_away_check(const TransactionStmt *stmt);
extern Size mer_sendaway_size(void);
extern void mer_sendaway_startup(void);
extern void mer_sendaway_init(void);

/* ---------- OIDs (oids.c) ---------- */

/* Before a statement that may make objects, and after each: room for so many without another look. */
extern void mer_oids_ensure(uint32 objects);
extern bool mer_oid_leased(Oid oid);

/* Statements that begin after a change (replan.c). */
extern void mer_replan_init(void);

extern void mer_coherence_init(void);

/* Shared memory of oids.c. */
extern Size mer_oids_size(void);
extern void mer_oids_startup(void);

#endif							/* MERIDIAN_COHERENCE_H */
