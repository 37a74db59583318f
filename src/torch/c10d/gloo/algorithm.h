// What ProcessGroupGloo.hpp wants of this header of gloo is nothing but that it is there: see README.md beside.
#pragma once
