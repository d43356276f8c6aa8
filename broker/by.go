package broker

// By is who decided about a flow.
type By uint8

// The zero By are the rules in force for everybody.
const (
	ByRules  By = iota // of Record.Generation
	ByOwn              // rules of its capture's own, which no reload touches
	BySystem           // a system broker; this one only carries it
	ByPlace            // nobody: it goes to the capture's own addresses, which is not judged
)

func (f *flow) by() By {
	switch {
	case f.order() != nil:
		return BySystem
	case f.at.Local && !f.c.Localhost:
		return ByPlace
	case f.c.Policy != nil:
		return ByOwn
	}
	return ByRules
}
