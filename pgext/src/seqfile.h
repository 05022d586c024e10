/*
 * seqfile.h
 *	  The local file of a sequence that arrived with a catalog delta.
 */
#ifndef MERIDIAN_SEQFILE_H
#define MERIDIAN_SEQFILE_H

#include "postgres.h"

/* Write the one page that the server expects of a sequence; its state lies in storage. */
extern void mer_fill_sequence_file(Oid relid);

#endif							/* MERIDIAN_SEQFILE_H */
