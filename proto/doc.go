// Package proto holds the contracts between Testudo's services: the .proto
// files under testudo/ and the Go code generated from them under gen/.
package proto
