// What other files of the bridge need of the lanes.
#pragma once

namespace dsr {

// The host waits for every copy that was given to a lane.
void finish_lanes();

}  // namespace dsr
