// Package archive writes values out and reads them back, for what must survive
// a restart of the key manager.
//
// A Coder goes through a value field by field, and one function serves both
// directions: it appends each field when it writes, and overwrites it when it
// reads. So the two cannot disagree about an order or a width. Numbers are
// varints, lengths come before their octets and are checked before anything is
// allocated, and the first error stays and makes the rest do nothing.
//
// What is written holds keys in the clear. It is for memory only: whoever stores
// it seals it first, and wipes it.
package archive
