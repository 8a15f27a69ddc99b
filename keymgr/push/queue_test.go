package push_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

func group(owner int, ids ...ipsec.SAID) push.Group[int] {
	g := push.Group[int]{Owner: owner}
	for _, id := range ids {
		g.Ops = append(g.Ops, push.Install{SA: ipsec.SA{ID: id}})
	}
	return g
}

func owners(gs []push.Group[int]) []int {
	var out []int
	for _, g := range gs {
		out = append(out, g.Owner)
	}
	return out
}

func TestOneBatchIsOutstandingAndTheRestTravelsTogether(t *testing.T) {
	var q push.Queue[int]
	q.Add(group(1, 1))
	if b, ok := q.Next(1); !ok || len(b.Ops) != 1 {
		t.Fatalf("first batch: got %d operations, %t", len(b.Ops), ok)
	}
	q.Add(group(2, 2, 3))
	q.Add(group(3, 4))
	if _, ok := q.Next(2); ok {
		t.Fatal("a second batch while one is outstanding")
	}
	if got := q.Ack(7); got != nil {
		t.Fatalf("ack of a nonce that is not outstanding: got %v", got)
	}
	if got := owners(q.Ack(1)); len(got) != 1 || got[0] != 1 {
		t.Fatalf("ack: got %v, want [1]", got)
	}
	b, ok := q.Next(2)
	if !ok || len(b.Ops) != 3 {
		t.Fatalf("second batch: got %d operations, want the 3 that waited", len(b.Ops))
	}
}

// An SA that is removed before its batch has left is removed by the next one: a worker
// refuses a batch that does both.
func TestARemovalTravelsAfterTheInstallation(t *testing.T) {
	var q push.Queue[int]
	q.Add(group(1, 1))
	q.Add(push.Group[int]{Owner: 2, Ops: []push.Op{push.Remove{ID: 7}, push.Remove{ID: 1}}})
	q.Add(group(3, 2))
	for i, want := range [][]int{{1}, {2, 3}} {
		if _, ok := q.Next(uint64(i)); !ok {
			t.Fatal("nothing to send")
		}
		if got := owners(q.Ack(uint64(i))); !slices.Equal(got, want) {
			t.Errorf("batch %d has groups %v, want %v", i, got, want)
		}
	}
}

func TestNackBlamesTheGroupAndRetriesTheOthersInOrder(t *testing.T) {
	var q push.Queue[int]
	q.Add(group(1, 1, 2))
	q.Add(group(2, 3, 4))
	q.Add(group(3, 5))
	if b, _ := q.Next(1); len(b.Ops) != 5 {
		t.Fatalf("batch of %d operations, want 5", len(b.Ops))
	}
	q.Add(group(4, 6))
	if bad := owners(q.Nack(1, 3)); len(bad) != 1 || bad[0] != 2 {
		t.Fatalf("operation 3 is group 2's: got %v", bad)
	}
	b, _ := q.Next(2)
	var ids []ipsec.SAID
	for _, op := range b.Ops {
		ids = append(ids, op.(push.Install).SA.ID)
	}
	if len(ids) != 4 || ids[0] != 1 || ids[1] != 2 || ids[2] != 5 || ids[3] != 6 {
		t.Fatalf("retry: got %v, want 1 2 5 6", ids)
	}
}

func TestNackOfNoOperationBlamesAll(t *testing.T) {
	var q push.Queue[int]
	q.Add(group(1, 1))
	q.Add(group(2, 2))
	q.Next(1)
	if bad := owners(q.Nack(1, 99)); len(bad) != 2 {
		t.Fatalf("got %v, want both groups", bad)
	}
	if q.Len() != 0 {
		t.Fatalf("%d groups left", q.Len())
	}
}

// Whatever is acknowledged, refused or reset, each group is answered once, in
// the order of Add for those that are acknowledged.
func TestEveryGroupIsAnsweredOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q push.Queue[int]
		added, last := 0, 0
		answered := make(map[int]string)
		answer := func(gs []push.Group[int], how string) {
			for _, g := range gs {
				if answered[g.Owner] != "" {
					t.Fatalf("group %d is %s and was %s", g.Owner, how, answered[g.Owner])
				}
				answered[g.Owner] = how
				if how == "acked" {
					if g.Owner <= last {
						t.Fatalf("group %d acknowledged after %d", g.Owner, last)
					}
					last = g.Owner
				}
			}
		}
		nonce, out := uint64(0), push.Batch{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				added++
				q.Add(group(added, make([]ipsec.SAID, rapid.IntRange(1, push.MaxBatch/2).Draw(t, "size"))...))
			case 2:
				if b, ok := q.Next(nonce + 1); ok {
					if nonce++; len(b.Ops) == 0 || len(b.Ops) > push.MaxBatch {
						t.Fatalf("batch of %d operations", len(b.Ops))
					}
					out = b
				}
			case 3:
				answer(q.Ack(nonce), "acked")
			case 4:
				if len(out.Ops) != 0 {
					answer(q.Nack(nonce, rapid.IntRange(0, len(out.Ops)-1).Draw(t, "op")), "nacked")
				}
			}
		}
		answer(q.Reset(), "reset")
		if len(answered) != added || q.Len() != 0 {
			t.Fatalf("%d of %d groups answered, %d left", len(answered), added, q.Len())
		}
	})
}

// BenchmarkInstalls pushes 10,000 outbound and inbound SAs through the queue
// and a link that is a channel, acknowledged by another goroutine.
func BenchmarkInstalls(b *testing.B) {
	const sas = 10000
	for b.Loop() {
		var q push.Queue[int]
		link, acks := make(chan push.Batch, 1), make(chan uint64, 1)
		go func() {
			held := make(map[ipsec.SAID]ipsec.SA)
			for batch := range link {
				for _, op := range batch.Ops {
					in := op.(push.Install)
					held[in.SA.ID] = in.SA
				}
				acks <- batch.Nonce
			}
		}()
		nonce, sent, done := uint64(0), 0, 0
		for done < sas {
			for ; sent < sas && q.Len() < 2*push.MaxBatch; sent += 2 {
				q.Add(group(sent, ipsec.SAID(sent), ipsec.SAID(sent+1)))
			}
			if batch, ok := q.Next(nonce + 1); ok {
				nonce++
				link <- batch
			}
			for _, g := range q.Ack(<-acks) {
				done += len(g.Ops)
			}
		}
		close(link)
	}
	b.ReportMetric(float64(sas)*float64(b.N)/b.Elapsed().Seconds(), "installs/s")
}
