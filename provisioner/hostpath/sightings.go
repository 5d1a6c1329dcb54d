package hostpath

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// sightings remember which pools nodes have said that they have.
type sightings struct {
	clock clock.PassiveClock
	began time.Time

	mu sync.Mutex
	// seen holds what directories were found to hold, and where each id was seen.
	seen map[string]map[string]sighting // by node and directory
	ids  map[string]map[provisioner.PoolPlace]bool
	// asked holds when a node has last said which pools it has. An older server
	// says so too, and names none.
	asked map[string]time.Time
	// lastServed holds when a node was last listed with a server.
	lastServed map[string]time.Time
	// unsure holds the nodes that have left open, when they were asked last, what a
	// directory of theirs holds.
	unsure map[string]bool
	// servers holds the nodes that had a server when they were listed; nil before.
	servers map[string]bool
}

// sighting is the pool in one directory.
type sighting struct {
	pool, id string
	at       time.Time
}

func newSightings(c clock.PassiveClock) *sightings {
	return &sightings{
		clock: c, began: c.Now(), seen: map[string]map[string]sighting{}, ids: map[string]map[provisioner.PoolPlace]bool{},
		asked: map[string]time.Time{}, unsure: map[string]bool{}, lastServed: map[string]time.Time{},
	}
}

// learn notes what a node has said of some of its directories, or of all. A
// directory that it has not looked at is believed to be as it was.
func (s *sightings) learn(node string, reports []wire.PoolReport, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	named := map[string]bool{}
	unsure := len(reports) == 0 // an older server
	for _, r := range reports {
		at := provisioner.PoolPlace{Node: node, Directory: r.Directory}
		named[r.Directory] = true
		switch {
		case r.ID != "":
			s.dropLocked(at)
			s.addLocked(at, sighting{r.Pool, r.ID, now})
		case r.Gone:
			s.dropLocked(at)
		case s.seen[node][r.Directory].id == "":
			unsure = true
		}
	}
	if !all {
		return
	}
	s.asked[node], s.unsure[node] = now, unsure
	for directory := range s.seen[node] {
		if !named[directory] {
			s.dropLocked(provisioner.PoolPlace{Node: node, Directory: directory})
		}
	}
}

func (s *sightings) addLocked(at provisioner.PoolPlace, found sighting) {
	if s.seen[at.Node] == nil {
		s.seen[at.Node] = map[string]sighting{}
	}
	s.seen[at.Node][at.Directory] = found
	if s.ids[found.id] == nil {
		s.ids[found.id] = map[provisioner.PoolPlace]bool{}
	}
	s.ids[found.id][at] = true
}

func (s *sightings) dropLocked(at provisioner.PoolPlace) {
	id := s.seen[at.Node][at.Directory].id
	if delete(s.seen[at.Node], at.Directory); len(s.seen[at.Node]) == 0 {
		delete(s.seen, at.Node)
	}
	if delete(s.ids[id], at); len(s.ids[id]) == 0 {
		delete(s.ids, id)
	}
}

// forget drops what a node that can't be asked has said, if that is long ago, or the
// node is gone.
func (s *sightings) forget(node string, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(node, gone)
}

func (s *sightings) forgetLocked(node string, gone bool) {
	for directory, found := range s.seen[node] {
		if gone || s.clock.Since(found.at) > poolMemory {
			s.dropLocked(provisioner.PoolPlace{Node: node, Directory: directory})
		}
	}
	if gone {
		delete(s.asked, node)
	}
}

// served notes which nodes have a server, and drops what others have said long ago.
func (s *sightings) served(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.servers = map[string]bool{}
	now := s.clock.Now()
	for _, name := range names {
		s.servers[name] = true
		s.lastServed[name] = now
	}
	maps.DeleteFunc(s.lastServed, func(_ string, at time.Time) bool { return now.Sub(at) > poolMemory })
	for node := range s.seen {
		if !s.servers[node] {
			s.forgetLocked(node, false)
		}
	}
	maps.DeleteFunc(s.asked, func(node string, _ time.Time) bool { return !s.servers[node] })
	maps.DeleteFunc(s.unsure, func(node string, _ bool) bool { return !s.servers[node] })
}

// heardWithin reports whether node has said which pools it has, no longer ago than
// age.
func (s *sightings) heardWithin(node string, age time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.asked[node]
	return ok && s.clock.Since(at) < age
}

// has reports whether node has the pool.
func (s *sightings) has(node, id string) bool { return slices.Contains(s.nodesWith(id), node) }

// rulesOut reports whether node is known not to have the pool: it has said what all
// its directories hold, or has had no server for long. That there is none at this
// moment says nothing: its agent may be about to come back.
func (s *sightings) rulesOut(node, id string) bool {
	if s.has(node, id) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, asked := s.asked[node]; asked {
		return !s.unsure[node]
	}
	since := s.began
	if served := s.lastServed[node]; served.After(since) {
		since = served
	}
	return s.servers != nil && !s.servers[node] && s.clock.Since(since) > poolMemory
}

// doubt notes that what a node has said is not all.
func (s *sightings) doubt(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsure[node] = true
}

// answers reports whether node has a server that has said which pools it has.
func (s *sightings) answers(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, asked := s.asked[node]
	return asked && s.servers[node]
}

// at returns the id of the pool that node has where path lies, "" when that is not
// known.
func (s *sightings) at(node, path string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for directory, found := range s.seen[node] {
		if strings.HasPrefix(path, directory+"/") {
			return found.id
		}
	}
	return ""
}

// idsIn returns the ids in the directories of a pool of node.
func (s *sightings) idsIn(node, pool string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for _, found := range s.seen[node] {
		if found.pool == pool {
			ids = append(ids, found.id)
		}
	}
	return ids
}

// nodesIn returns the nodes that a directory of the pool of that name was seen on.
func (s *sightings) nodesIn(pool string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var nodes []string
	for node, directories := range s.seen {
		for _, found := range directories {
			if found.pool == pool {
				nodes = append(nodes, node)
				break
			}
		}
	}
	return nodes
}

// places returns where the pool was seen, sorted.
func (s *sightings) places(id string) []provisioner.PoolPlace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.ids[id]), func(a, b provisioner.PoolPlace) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Directory, b.Directory))
	})
}

// nodesWith returns the nodes that the pool was seen on, sorted.
func (s *sightings) nodesWith(id string) []string {
	var nodes []string
	for _, at := range s.places(id) {
		nodes = append(nodes, at.Node)
	}
	return slices.Compact(nodes)
}

// anyShared reports whether a pool of node was seen elsewhere as well.
func (s *sightings) anyShared(node, pool string) bool {
	return slices.ContainsFunc(s.idsIn(node, pool), func(id string) bool { return len(s.places(id)) > 1 })
}

// doubtful returns the ids that were seen in several places, sorted.
func (s *sightings) doubtful() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, places := range s.ids {
		if len(places) > 1 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
