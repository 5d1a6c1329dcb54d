package agents

import (
	"container/list"
	"sync"
)

// idleConnections are those that nobody uses, the one that was used last at the
// end. Whoever calls may hold the mutex of an agent.
type idleConnections struct {
	most int

	mu   sync.Mutex
	list list.List // of *idleConnection
}

// idleConnection is one of them.
type idleConnection struct {
	agent      *agent
	connection *connection
}

// add adds one. When there are too many then, it returns the oldest, which is to
// be closed.
func (i *idleConnections) add(conn *idleConnection) (place *list.Element, oldest *idleConnection) {
	i.mu.Lock()
	defer i.mu.Unlock()
	place = i.list.PushBack(conn)
	if i.list.Len() > i.most {
		oldest, _ = i.list.Remove(i.list.Front()).(*idleConnection)
	}
	return place, oldest
}

// remove takes one away; a place that was given away is no matter.
func (i *idleConnections) remove(place *list.Element) {
	if place == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list.Remove(place)
}
